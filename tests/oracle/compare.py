"""Compare two OCI runtime specs field by field, and hold the differences against the committed list."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("differences.toml")

#: Lists whose entries have a name: they are compared by it, and the order of the names apart.
_KEYED = {"mounts": "destination", "linux.namespaces": "type", "linux.devices": "path"}
#: Of those, the ones whose order has no meaning.
_UNORDERED = frozenset({"linux.namespaces"})


@dataclass(frozen=True)
class Difference:
    """One field that the two specs disagree about; None where it is missing."""

    #: The pod and container: "<case>" for the pause container, "<case>/<container>" for another.
    subject: str
    #: Members joined by dots, named list entries in brackets: `mounts[/dev/shm].options`.
    path: str
    containerd: Any
    bulkhead: Any

    def __str__(self) -> str:
        theirs, ours = (json.dumps(value, sort_keys=True) for value in (self.containerd, self.bulkhead))
        return f"{self.subject}: {self.path}\n    containerd: {theirs}\n    bulkhead:   {ours}"


@dataclass
class Listed:
    """An entry of differences.toml: a difference that is meant, where it may be seen, and why."""

    path: str
    reason: str
    #: Patterns of subjects.
    subjects: list[str]
    #: The values, where they are always the same.
    values: dict[str, Any]
    seen: int = field(default=0, compare=False)

    def covers(self, difference: Difference) -> bool:
        """Tell whether this entry is about that difference."""
        if not _matches(self.path, difference.path):
            return False
        if not any(_matches(pattern, difference.subject) for pattern in self.subjects):
            return False
        actual = {"containerd": difference.containerd, "bulkhead": difference.bulkhead}
        return all(actual[side] == value for side, value in self.values.items())


def load(path: Path = LIST) -> list[Listed]:
    """Read the committed list; every entry needs a reason."""
    entries = []
    for entry in tomllib.loads(path.read_text())["difference"]:
        assert entry["reason"].strip(), entry
        values = {side: json.loads(entry[side]) for side in ("containerd", "bulkhead") if side in entry}
        entries.append(Listed(entry["path"], entry["reason"], entry.get("subjects", ["*"]), values))
    return entries


def unlisted(found: Iterable[Difference], listed: list[Listed]) -> list[Difference]:
    """Return the differences that no entry covers, counting for each entry how often it was needed."""
    left = []
    for difference in found:
        covering = [entry for entry in listed if entry.covers(difference)]
        for entry in covering:
            entry.seen += 1
        if not covering:
            left.append(difference)
    return left


def differences(subject: str, containerd: Any, bulkhead: Any) -> list[Difference]:
    """Return the fields in which two specs differ; empty members are the same as missing ones (as Go encodes them)."""
    return list(_compare(subject, "", pruned(containerd), pruned(bulkhead)))


def pruned(value: Any) -> Any:
    """Return the value without members that are null, false, "" or an empty list or object."""
    if isinstance(value, dict):
        members = {key: pruned(member) for key, member in value.items()}
        return {key: member for key, member in members.items() if not _is_empty(member)}
    if isinstance(value, list):
        return [pruned(member) for member in value]
    return value


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _compare(subject: str, path: str, theirs: Any, ours: Any) -> Iterator[Difference]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from _compare(subject, f"{path}.{key}".lstrip("."), theirs.get(key), ours.get(key))
    elif path in _KEYED and isinstance(theirs, list) and isinstance(ours, list):
        yield from _compare_named(subject, path, theirs, ours)
    elif theirs != ours:
        yield Difference(subject, path, theirs, ours)


def _compare_named(subject: str, path: str, theirs: list[Any], ours: list[Any]) -> Iterator[Difference]:
    key = _KEYED[path]
    left, right = ({entry[key]: entry for entry in entries} for entries in (theirs, ours))
    assert len(left) == len(theirs), f"{subject}: {path} names one thing twice; compare by another key"
    for name in sorted({*left, *right}):
        if name in left and name in right:
            yield from _compare(subject, f"{path}[{name}]", left[name], right[name])
        else:
            yield Difference(subject, f"{path}[{name}]", left.get(name), right.get(name))
    common = [[name for name in side if name in left and name in right] for side in (left, right)]
    if path not in _UNORDERED and common[0] != common[1]:
        yield Difference(subject, f"{path}[order]", *common)


def _matches(pattern: str, text: str) -> bool:
    """Match with `*` as the only wildcard: brackets belong to paths."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None
