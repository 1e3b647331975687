"""The comparison that the oracle uses: what counts as a difference, and what the committed list may say."""

from pathlib import Path

import pytest

from oracle import compare
from oracle.compare import Difference, Listed


def test_empty_members_are_missing_ones() -> None:
    """null, false, "", [] and {} are what Go leaves out."""
    assert compare.differences("pod", {"a": None, "b": {"c": []}, "d": False}, {"e": ""}) == []
    assert compare.differences("pod", {"a": 0}, {}) == [Difference("pod", "a", 0, None)]


def test_named_entries_are_compared_by_name() -> None:
    """Mounts are compared by destination, and their order apart; the order of namespaces has no meaning."""
    left = [{"destination": "/a", "type": "x"}, {"destination": "/b"}]
    right = [{"destination": "/b"}, {"destination": "/a", "type": "y"}]
    assert compare.differences("pod", {"mounts": left}, {"mounts": right}) == [
        Difference("pod", "mounts[/a].type", "x", "y"),
        Difference("pod", "mounts[order]", ["/a", "/b"], ["/b", "/a"]),
    ]
    kinds = [{"type": "pid"}, {"type": "ipc"}]
    assert compare.differences("p", {"linux": {"namespaces": kinds}}, {"linux": {"namespaces": kinds[::-1]}}) == []


def test_an_entry_covers_what_it_names() -> None:
    """Path, subject and values must all fit; what fits is counted."""
    found = Difference("pod/c", "process.env", ["A"], ["B"])
    fitting = Listed("process.*", "why", ["pod/*"], {"bulkhead": ["B"]})
    assert compare.unlisted([found], [fitting]) == []
    assert fitting.seen == 1
    for other in (
        Listed("process", "why", ["*"], {}),
        Listed("process.env", "why", ["pod"], {}),
        Listed("process.env", "why", ["*"], {"containerd": ["C"]}),
    ):
        assert compare.unlisted([found], [other]) == [found]
        assert other.seen == 0


def test_every_entry_needs_a_reason(tmp_path: Path) -> None:
    """An entry without a reason is refused; the committed list has one for each."""
    assert all(entry.reason for entry in compare.load())
    broken = tmp_path / "differences.toml"
    broken.write_text('[[difference]]\npath = "a"\nreason = " "\n')
    with pytest.raises(AssertionError):
        compare.load(broken)
