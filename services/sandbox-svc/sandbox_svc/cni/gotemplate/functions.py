"""The functions that every Go template has, but for those that escape HTML, JavaScript and URLs."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Refused(Exception):
    """A function cannot work with what it was given."""


def truth(value: Any) -> bool:
    """Return Go's idea of truth: not the empty value of its type."""
    return bool(value)


def text(value: Any) -> str:
    """Return a value as fmt.Print shows it."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case Mapping():
            return "{" + " ".join(map(text, value.values())) + "}"
        case list() | tuple():
            return "[" + " ".join(map(text, value)) + "]"
        case float():
            return f"{value:g}"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if not isinstance(value, Sequence) or isinstance(key, bool) or not isinstance(key, int):
            raise Refused(f"index: cannot index {text(value)!r} with {text(key)!r}")
        if not 0 <= key < len(value):
            raise Refused(f"index: out of range: {key}")
        value = ord(value[key]) if isinstance(value, str) else value[key]
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if not isinstance(value, Sequence) or len(bounds) > 2 or any(not 0 <= bound <= len(value) for bound in bounds):
        raise Refused("slice: bounds out of range, or not a list or string")
    return value[slice(*([*bounds, len(value)][:2]))] if bounds else value


def _len(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if not isinstance(value, Sequence | Mapping):
        raise Refused(f"len: {text(value)} has no length")
    return len(value)


def _kind(value: Any) -> type:
    return type(value) if not isinstance(value, Sequence) or isinstance(value, str) else list


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise Refused("eq: missing argument")
    for other in others:
        if None not in (first, other) and _kind(first) is not _kind(other):
            raise Refused("eq: incompatible types for comparison")
    return any(first == other for other in others)


def _ordered(name: str, compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def function(first: Any, second: Any) -> bool:
        if _kind(first) is not _kind(second) or not isinstance(first, str | int | float) or isinstance(first, bool):
            raise Refused(f"{name}: incompatible types for comparison")
        return compare(first, second)

    return function


def _print(*values: Any) -> str:
    """Join as fmt.Sprint does: with a space between two values of which neither is a string."""
    out = ""
    for number, value in enumerate(values):
        spaced = number and not isinstance(value, str) and not isinstance(values[number - 1], str)
        out += (" " if spaced else "") + text(value)
    return out


def _printf(layout: str, *values: Any) -> str:
    rest = list(values)

    def one(found: re.Match[str]) -> str:
        flags, width, precision, verb = found.groups()
        if verb == "%":
            return "%"
        if not rest:
            raise Refused(f"printf: no value for %{verb}")
        shown = _verb(verb, rest.pop(0))
        shown = shown[: int(precision)] if precision and verb in "sv" else shown
        pad = "0" if "0" in flags and "-" not in flags else " "
        return shown.ljust(int(width or 0)) if "-" in flags else shown.rjust(int(width or 0), pad)

    out = re.sub(r"%([-0]*)(\d*)(?:\.(\d+))?([a-zA-Z%])", one, layout)
    if rest:
        raise Refused(f"printf: {len(rest)} values too many")
    return out


def _verb(verb: str, value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if verb == "v" or (verb == "s" and isinstance(value, str | list)) or (verb == "t" and isinstance(value, bool)):
        return text(value)
    if verb in "dxX" and whole:
        return format(value, verb)
    if verb == "q" and isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    raise Refused(f"printf: %{verb} does not fit {text(value)!r}")


#: All but `and` and `or`, which do not evaluate every argument and are the renderer's own.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "not": lambda value: not truth(value),
    "index": _index,
    "slice": _slice,
    "len": _len,
    "print": _print,
    "println": lambda *values: " ".join(map(text, values)) + "\n",
    "printf": _printf,
    "eq": _eq,
    "ne": lambda first, second: not _eq(first, second),
    "lt": _ordered("lt", lambda a, b: a < b),
    "le": _ordered("le", lambda a, b: a <= b),
    "gt": _ordered("gt", lambda a, b: a > b),
    "ge": _ordered("ge", lambda a, b: a >= b),
}
