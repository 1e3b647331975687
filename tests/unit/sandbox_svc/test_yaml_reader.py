"""YAML and JSON files, read by what each field must be."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_svc import yaml_reader
from sandbox_svc.yaml_reader import MAX_DEPTH, Item, parse

VALUES = st.recursive(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)
    | st.integers(-(2**40), 2**40)
    | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=20,
)


def compare(item: Item, value: object) -> None:
    if isinstance(value, dict):
        members = item.mapping()
        assert members.keys() == value.keys()
        for name, inner in value.items():
            compare(members[name], inner)
    elif isinstance(value, list):
        assert len(item.sequence()) == len(value)
        for one, inner in zip(item.sequence(), value, strict=True):
            compare(one, inner)
    elif isinstance(value, bool):
        assert item.boolean() is value
    elif isinstance(value, int):
        assert item.integer(-(2**40), 2**40) == value
    else:
        assert item.text() == value


@given(VALUES)
def test_json_is_read(value: object) -> None:
    """Every JSON document says what it says."""
    compare(parse(json.dumps(value).encode()), value)


@given(st.binary(max_size=200))
def test_garbage_is_one_error(data: bytes) -> None:
    """Bytes are a document or a ValueError, and nothing else."""
    try:
        item = parse(data)
        item.mapping()
    except ValueError:
        pass


@pytest.mark.parametrize("data", [b"[" * 1_000_000, b"{a: " * 100_000, b"- " * 100_000])
def test_deep_nesting_is_refused(data: bytes) -> None:
    """A document cannot exhaust the stack."""
    with pytest.raises(ValueError, match=f"{MAX_DEPTH} levels|line 1"):
        parse(data)


def walk(item: Item) -> None:
    for child in item.sequence() if item.is_list else ():
        walk(child)


def test_aliases_of_aliases_are_refused() -> None:
    """A document that unfolds to thousands of millions of values ends as an error."""
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ValueError, match="values"):
        walk(parse("\n".join(lines).encode()))
    with pytest.raises(ValueError, match="levels"):
        walk(parse(b"&a [*a]"))


def test_a_document_of_too_many_values_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading ends where the limit is passed, before all the values of the file are in memory."""
    monkeypatch.setattr(yaml_reader, "MAX_VALUES", 100)
    assert len(parse(b"[" + b"a," * 90 + b"]").texts()) == 90
    with pytest.raises(ValueError, match="more than 100 values"):
        parse(b"[" + b"a," * 101)


def test_many_merges_into_a_large_mapping_take_no_time() -> None:
    """The time that a document takes does not grow with the square of its size."""
    members = "".join(f"  k{number}: 1\n" for number in range(20_000))
    text = f"x: &e {{}}\nm:\n  <<: [{', '.join(['*e'] * 20_000)}]\n{members}"
    item = parse(text.encode()).mapping()["m"]
    began = time.process_time()
    assert len(item.mapping()) == 20_000
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("text", "number"),
    [("0600", 384), ("0o600", 384), ("0x1F", 31), ("0b11", 3), ("1_000", 1000), ("-5", -5), ("0", 0)],
)
def test_integers(text: str, number: int) -> None:
    """Numbers are read in every notation."""
    assert parse(text.encode()).integer(-10, 10_000) == number


@pytest.mark.parametrize("text", ["'5'", "5.0", "1e3", "x", "[5]", "99999", "08", "~"])
def test_what_is_no_integer(text: str) -> None:
    """A string, a fraction, a number out of bounds and nothing at all are no numbers."""
    with pytest.raises(ValueError, match="line 1"):
        parse(text.encode()).integer(0, 10_000)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: 1\na: 2", "line 2.*'a' stands twice"),
        ("b: 1", "line 1.*unknown field 'b'"),
        ("- a", "want a mapping, got a list"),
        ("? [a]\n: 1", "want a name"),
        ("a: *x", "unknown alias 'x'"),
    ],
)
def test_mistakes_are_named(text: str, match: str) -> None:
    """An error says in which line what is wrong."""
    with pytest.raises(ValueError, match=match):
        parse(text.encode()).mapping({"a"})


def test_members_in_any_case_and_merged() -> None:
    """Names fold to the known spelling where asked for; a merge fills in what is not said."""
    item = parse(b"x: &x {CLASS: 1, other: 2}\ny:\n  <<: *x\n  Other: 3\n").mapping()["y"]
    found = item.mapping({"class", "other"}, any_case=True)
    assert {name: value.text() for name, value in found.items()} == {"class": "1", "other": "3"}
