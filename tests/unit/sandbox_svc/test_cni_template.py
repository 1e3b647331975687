from pathlib import Path

import pytest

from bulkhead.config.model import Cni
from bulkhead.errors import InvalidArgument
from sandbox_svc.cni import conf, template

TEMPLATE = """{"cniVersion": "1.0.0", "name": "t", "plugins": [{"type": "bridge", "ipam": {"type": "host-local",
"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
"routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}"""


def test_the_template_is_filled_and_written(tmp_path: Path) -> None:
    """The node's ranges and the default routes of their families reach the file, which then loads."""
    source = tmp_path / "cni.template"
    source.write_text(TEMPLATE)
    path = template.write_from_template(source, tmp_path / "net.d", ["10.1.0.0/24", "fd01::/64"])
    [network] = conf.load(path.parent, 1).networks
    ipam = network["plugins"][0]["ipam"]
    assert ipam["ranges"] == [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]
    assert ipam["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("text", "cidrs", "reason"),
    [
        ("{{.Nope}}", ["10.1.0.0/24"], "line 1: no field .Nope"),
        ("{{.PodCIDR}}", ["10.1.0.0/24"], "not JSON"),
        (TEMPLATE, ["10.1.0.0/99"], "pod CIDR"),
        (TEMPLATE, [], "no pod CIDR"),
    ],
)
def test_a_bad_template_is_named_and_nothing_written(tmp_path: Path, text: str, cidrs: list[str], reason: str) -> None:
    """The error has the template's path and the reason; the configuration directory stays as it was."""
    source = tmp_path / "cni.template"
    source.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        template.write_from_template(source, tmp_path / "net.d", cidrs)
    assert str(source) in str(caught.value)
    assert reason in str(caught.value)
    assert not (tmp_path / "net.d").exists()


def test_the_kubelet_s_ranges_are_applied_only_where_a_network_is_missing(tmp_path: Path) -> None:
    """Without ranges or template, and beside a valid configuration, nothing is written; wrong ranges are refused."""
    source = tmp_path / "cni.template"
    source.write_text(TEMPLATE)
    config = Cni(conf_dir=str(tmp_path / "net.d"), conf_template=str(source))
    assert template.apply(config, "", configured=False) is None
    assert template.apply(Cni(conf_dir=config.conf_dir), "10.1.0.0/24", configured=False) is None
    assert template.apply(config, "10.1.0.0/24", configured=True) is None
    with pytest.raises(InvalidArgument, match="pod CIDR"):
        template.apply(config, "10.1.0.0/24,none", configured=True)
    assert not (tmp_path / "net.d").exists()
    assert (
        template.apply(config, "10.1.0.0/24, fd01::/64", configured=False)
        == tmp_path / "net.d/10-bulkhead-net.conflist"
    )


def test_routes_follow_the_families() -> None:
    """Each family among the ranges gets one default route, IPv4 first."""
    assert template.default_routes(["fd00::/64", "10.0.0.0/8", "10.1.0.0/16"]) == ["0.0.0.0/0", "::/0"]
    assert template.default_routes(["fd00::/64"]) == ["::/0"]
