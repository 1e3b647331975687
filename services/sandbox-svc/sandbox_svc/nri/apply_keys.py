"""Keys that stand for their own removal, and enum names, as adjustments write them."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from bulkhead.errors import FailedPrecondition


def removal(key: str) -> str | None:
    """Return the name that a key marked for removal ("-name") takes out; None for any other key."""
    return key[1:] if key.startswith("-") else None


def entries(target: MutableMapping[str, Any], wanted: Mapping[str, Any], field: str) -> None:
    """Set and remove entries of a map; an empty key names nothing."""
    for key, value in wanted.items():
        gone = removal(key)
        if not (key if gone is None else gone):
            raise FailedPrecondition(f"NRI adjustment.{field}: an entry without a name")
        if gone is None:
            target[key] = value
        else:
            target.pop(gone, None)


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
