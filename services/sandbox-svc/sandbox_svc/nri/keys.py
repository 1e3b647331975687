"""Keys that stand for their own removal, and names of enums, as adjustments write them (pure)."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from bulkhead.errors import FailedPrecondition


def removal(key: str) -> tuple[str, bool]:
    """Return a key without the "-" that marks it for removal, and whether it was marked."""
    return (key[1:], True) if key.startswith("-") else (key, False)


def entries(target: MutableMapping[str, Any], wanted: Mapping[str, Any], field: str) -> None:
    """Set and remove entries of a map; an empty key names nothing."""
    for key, value in wanted.items():
        name, gone = removal(key)
        if not name:
            raise FailedPrecondition(f"NRI adjustment.{field}: an entry without a name")
        if gone:
            target.pop(name, None)
        else:
            target[name] = value


def name_of(kind: Any, number: int, field: str) -> str:
    """Return an enum's name; FailedPrecondition for a number that this release does not know."""
    try:
        return str(kind.Name(number))
    except ValueError as error:
        raise FailedPrecondition(
            f"NRI adjustment.{field}: {number} is no {kind.DESCRIPTOR.name}, expected one of {_numbers(kind)}"
        ) from error


def one_of(value: str, known: Iterable[str], field: str) -> str:
    """Return a value that must be one of some words."""
    if value not in (words := tuple(known)):
        raise FailedPrecondition(f"NRI adjustment.{field}: {value!r}, expected one of {', '.join(words)}")
    return value


def _numbers(kind: Any) -> str:
    return ", ".join(str(number) for number in kind.values())
