import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from sandbox_svc.cni.gotemplate import render

DATA = {
    "PodCIDR": "10.0.0.0/16",
    "PodCIDRRanges": ["10.0.0.0/16", "fd00::/64"],
    "Routes": ["0.0.0.0/0", "::/0"],
}

#: Template and output, both as Go's text/template has them (1.26).
SAME_AS_GO = [
    ("a {{.PodCIDR}} b", "a 10.0.0.0/16 b"),
    (
        '{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}',
        '[{"subnet": "10.0.0.0/16"}], [{"subnet": "fd00::/64"}]',
    ),
    ("{{range .Routes}}<{{.}}>{{else}}none{{end}}", "<0.0.0.0/0><::/0>"),
    ("x {{- .PodCIDR -}}  y", "x10.0.0.0/16y"),
    ("x  {{- /* c */ -}}  y {{/* c */}} z", "xy  z"),
    ("{{index .PodCIDRRanges 1}} {{len .Routes}} {{len .PodCIDR}}", "fd00::/64 2 11"),
    ("{{if eq (len .Routes) 1}}1{{else if eq (len .Routes) 2}}2{{else}}3{{end}}", "2"),
    ("{{with $x := .Routes}}{{$x}}{{len .}}{{end}}", "[0.0.0.0/0 ::/0]2"),
    ('{{with ""}}a{{else}}b{{end}}{{with ""}}a{{else with .PodCIDR}}{{.}}{{end}}', "b10.0.0.0/16"),
    ("{{$a := 1}}{{range .Routes}}{{$a = 5}}{{end}}{{$a}}", "5"),
    ("{{$x := .PodCIDR}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "210.0.0.0/16"),
    ('{{.PodCIDR | printf "%s-%q" "x"}}', 'x-"10.0.0.0/16"'),
    ('{{printf "%d %05d %-5sx %v %t" 3 4 "ab" .Routes true}}', "3 00004 ab   x [0.0.0.0/0 ::/0] true"),
    ('{{print 1 2 "a" "b" 3}}', "1 2ab3"),
    ("{{println .PodCIDR 1}}", "10.0.0.0/16 1\n"),
    ("{{.}}", "{10.0.0.0/16 [10.0.0.0/16 fd00::/64] [0.0.0.0/0 ::/0]}"),
    (r'{{true}} {{1.5}} {{0x10}} {{`raw\n`}} {{"q\t\"\u0041"}}', 'true 1.5 16 raw\\n q\t"A'),
    ("{{if and .Routes (index .Routes 0)}}y{{end}}{{if or .PodCIDR (index .Routes 9)}}y{{end}}", "yy"),
    ("{{range $i, $e := .Routes}}{{if $i}}{{break}}{{end}}{{$e}}{{end}}", "0.0.0.0/0"),
    ("{{range $i, $e := .Routes}}{{if not $i}}{{continue}}{{end}}{{$e}}{{end}}", "::/0"),
    ("{{range 3}}{{.}}{{end}}", "012"),
    ('{{lt 1 2}} {{ge "a" "b"}} {{ne 1 1}} {{eq 3 1 2 3}}', "true false false true"),
    ("{{slice .PodCIDR 0 2}} {{slice .Routes 1}} {{(index .Routes 0) | len}}", "10 [::/0] 9"),
    ("{{range .Routes}}{{$.PodCIDR}};{{end}}", "10.0.0.0/16;10.0.0.0/16;"),
    ("{{and 1 0}} {{or 0 3}} {{1_000}}", "0 3 1000"),
    ('{{"a"}}{{"}}"}}', "a}}"),
]

#: Templates that Go refuses, and a word of our reason.
REFUSED_LIKE_GO = [
    ("\n\n{{.Nope}}", "line 3: no field .Nope (there are PodCIDR, PodCIDRRanges, Routes)"),
    ("{{index .Routes 2}}", "out of range"),
    ("{{$a}}", 'undefined variable "$a"'),
    ("{{if true}}{{$y := 1}}{{end}}{{$y}}", "undefined variable"),
    ("{{foo .}}", 'function "foo" not defined'),
    ("{{nil}}", "nil is not a command"),
    ('{{eq 1 "a"}}', "incompatible types"),
    ('{{lt 1 "a"}}', "incompatible types"),
    ("{{if .PodCIDR}}x", "if without end"),
    ("{{if}}x{{end}}", "missing value"),
    ("{{end}}", "unexpected {{end}}"),
    ("{{.PodCIDR", "unclosed action"),
    ('{{"unclosed}}', "unexpected"),
    ("{{.PodCIDR.Foo}}", "no field .Foo"),
    ("{{range .PodCIDR}}x{{end}}", "range cannot go through"),
    ("{{break}}", "outside of range"),
    ('{{.PodCIDR "x"}}', "not a function"),
    ('{{"x" | "y"}}', "constant"),
    ("{{len}}", "wrong number"),
    ("{{}}", "missing value"),
    ("{{(.PodCIDR}}", "unclosed parenthesis"),
    ("{{$a, $b := 1}}", "range only"),
    ('{{index .Routes "a"}}', "cannot index"),
    ("{{len 3}}", "no length"),
    ('{{template "x"}}', "not supported"),
]


@pytest.mark.parametrize(("template", "output"), SAME_AS_GO)
def test_output_is_go_s(template: str, output: str) -> None:
    """Each construct renders what Go's text/template renders."""
    assert render(template, DATA) == output


@pytest.mark.parametrize(("template", "reason"), REFUSED_LIKE_GO)
def test_what_go_refuses_is_refused_with_a_reason(template: str, reason: str) -> None:
    """A wrong template fails, names the line and says why."""
    with pytest.raises(InvalidArgument) as caught:
        render(template, DATA)
    assert str(caught.value).startswith("line ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("template", ['{{printf "%d" "a"}}', '{{printf "%s"}}', '{{printf "x" 1}}'])
def test_a_wrong_printf_is_refused(template: str) -> None:
    """Where Go would write its complaint into the configuration, rendering fails."""
    with pytest.raises(InvalidArgument):
        render(template, DATA)


@given(st.text(alphabet='{}-. $|:="()/*aifendrg1\n', max_size=40))
def test_no_text_crashes_the_parser(template: str) -> None:
    """Any text is rendered or refused."""
    try:
        render(template, DATA)
    except InvalidArgument as error:
        assert str(error).startswith("line ")


@given(st.lists(st.text(alphabet="abc:/0123", min_size=1)))
def test_the_documented_template_gives_json(ranges: list[str]) -> None:
    """containerd's example yields valid JSON for any number of ranges."""
    template = '[{{range $i, $range := .R}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]'
    assert json.loads(render(template, {"R": ranges})) == [[{"subnet": text}] for text in ranges]
