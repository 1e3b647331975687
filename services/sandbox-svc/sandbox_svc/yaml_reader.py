"""Files that others write for us in YAML or JSON: read strictly, by what each field must be.

A scalar's meaning is the field's type, as in the Go programs that read the same files: `yes` is a word where a string
is expected, and a number is its digits. JSON is read by the same parser, being nearly YAML. Every error is a ValueError
that names the line.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

#: Values that one document may have, and may unfold to: aliases of aliases would otherwise fill the memory.
MAX_VALUES = 500_000
#: Levels that a document may nest.
MAX_DEPTH = 64

_INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|0[0-7]*|[1-9][0-9]*)")
_TRUE = frozenset({"true", "True", "TRUE", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "n", "N", "no", "No", "NO", "off", "Off", "OFF"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_MERGE = "<<"


@dataclass(slots=True)
class _Node:
    """A value as it stands in the file: a scalar's text, or the entries of a list, or keys and values in turn."""

    kind: str
    line: int
    text: str = ""
    plain: bool = False
    entries: list["_Node"] = field(default_factory=list)


@dataclass(slots=True)
class _Budget:
    left: int = MAX_VALUES


class Item:
    """A value of the document; each way to read it raises ValueError where it is something else."""

    def __init__(self, node: _Node, name: str, budget: _Budget, depth: int = 0) -> None:
        budget.left -= 1
        if budget.left < 0 or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES} values or {MAX_DEPTH} levels")
        self._node, self.name, self._budget, self._depth = node, name, budget, depth

    def error(self, problem: str) -> ValueError:
        """Return an error that says where this value stands."""
        return _at(self._node, self.name, problem)

    @property
    def null(self) -> bool:
        """Whether nothing is said: `null`, `~` or an empty value."""
        return self._node.plain and self._node.text in _NULL

    @property
    def is_text(self) -> bool:
        """Whether this is a single value, not a list or a mapping."""
        return self._node.kind == "string"

    @property
    def is_list(self) -> bool:
        """Whether this is a list."""
        return self._node.kind == "list"

    def mapping(self, known: Collection[str] | None = None, *, any_case: bool = False) -> dict[str, "Item"]:
        """Return the members that say something; with `known`, another name is an error.

        Names are folded to the spelling of `known` with any_case, as Go's JSON decoder does.
        """
        if self._node.kind != "mapping":
            raise self.error(f"want a mapping, got a {self._node.kind}")
        found: dict[str, Item] = {}
        merged: list[Item] = []
        keys = iter(self._node.entries)
        for key, value in zip(keys, keys, strict=True):
            if key.plain and key.text == _MERGE:
                merged += [self._child(one, self.name) for one in (value.entries if value.kind == "list" else [value])]
                continue
            name = self._member(key, known, any_case)
            if name in found:
                raise _at(key, self.name, f"{name[:80]!r} stands twice")
            found[name] = self._child(value, f"{self.name}.{name}" if self.name else name)
        for source in merged:
            for name, item in source.mapping(known, any_case=any_case).items():
                found.setdefault(name, item)
        return {name: item for name, item in found.items() if not item.null}

    def sequence(self) -> list["Item"]:
        """Return the entries of a list."""
        if self._node.kind != "list":
            raise self.error(f"want a list, got a {self._node.kind}")
        return [self._child(node, f"{self.name}[{index}]") for index, node in enumerate(self._node.entries)]

    def texts(self) -> list[str]:
        """Return the entries of a list of strings."""
        return [item.text() for item in self.sequence()]

    def text(self) -> str:
        """Return a string; a number or a word stands for its own spelling, null for nothing."""
        if self._node.kind != "string":
            raise self.error(f"want a string, got a {self._node.kind}")
        return "" if self.null else self._node.text

    def integer(self, low: int, high: int) -> int:
        """Return a whole number, in any notation of YAML (0600 and 0o600 are octal)."""
        match = _INTEGER.fullmatch(self._node.text.replace("_", "")) if self._node.plain else None
        if match is None:
            raise self.error("want a whole number")
        digits = match[2]
        octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
        number = int(digits, 8) if octal else int(digits, 0)
        number = -number if match[1] == "-" else number
        if not low <= number <= high:
            raise self.error(f"want {low} to {high}, got {number}")
        return number

    def boolean(self) -> bool:
        """Return true or false; yes, no, on and off, words of YAML 1.1, may be quoted, as Go's reader has it."""
        text = self._node.text
        if text in _TRUE | _FALSE and (self._node.plain or text.lower() not in ("true", "false")):
            return text in _TRUE
        raise self.error("want true or false")

    def _member(self, key: _Node, known: Collection[str] | None, any_case: bool) -> str:
        if key.kind != "string":
            raise _at(key, self.name, f"want a name, got a {key.kind}")
        name = key.text
        if known is not None and name not in known:
            folded = next((one for one in known if any_case and one.lower() == name.lower()), None)
            if folded is None:
                raise _at(key, self.name, f"unknown field {name[:80]!r}, expected one of {', '.join(sorted(known))}")
            name = folded
        return name

    def _child(self, node: _Node, name: str) -> "Item":
        return Item(node, name, self._budget, self._depth + 1)


def parse(data: bytes) -> Item:
    """Return the first document of a file."""
    import yaml  # 2 MB that a node without such files does not pay

    try:
        return Item(_compose(yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))), "", _Budget())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error


def _compose(events: Iterator[Any]) -> _Node:
    """Return the first document as a tree; PyYAML's own composer recurses in C, and deep nesting kills the process."""
    root = _Node("list", 0)
    stack, anchors, count = [root], dict[str, _Node](), 0
    for event in events:
        kind = type(event).__name__
        line = event.start_mark.line + 1
        if kind == "DocumentEndEvent":
            return root.entries[0]
        if kind in ("SequenceEndEvent", "MappingEndEvent"):
            stack.pop()
            continue
        if kind == "AliasEvent":
            if event.anchor not in anchors:
                raise ValueError(f"line {line}: unknown alias {event.anchor[:80]!r}")
            stack[-1].entries.append(anchors[event.anchor])
            continue
        if kind == "ScalarEvent":
            node = _Node("string", line, event.value, plain=not event.style)
        elif kind in ("SequenceStartEvent", "MappingStartEvent"):
            node = _Node("list" if kind == "SequenceStartEvent" else "mapping", line)
        else:
            continue
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"line {line}: more than {MAX_VALUES} values")
        stack[-1].entries.append(node)
        if event.anchor:
            anchors[event.anchor] = node
        if kind != "ScalarEvent":
            stack.append(node)
            if len(stack) > MAX_DEPTH:
                raise ValueError(f"line {line}: more than {MAX_DEPTH} levels")
    raise ValueError("the file is empty")


def _at(node: _Node, name: str, problem: str) -> ValueError:
    return ValueError(f"line {node.line}: {name or 'document'}: {problem}")
