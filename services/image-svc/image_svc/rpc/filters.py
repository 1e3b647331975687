"""Conditions on images, as `--filter KEY=VALUE` writes them."""

import fnmatch
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from bulkhead.errors import InvalidArgument
from bulkhead.proto.images_pb2 import ImageSummary

Condition = Callable[[ImageSummary], bool]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def all_of(filters: Iterable[str], *, now: float | None = None) -> Condition:
    """Return the condition that all filters hold; InvalidArgument names one that is not known or malformed."""
    at = time.time() if now is None else now
    conditions = [_condition(each, at) for each in filters]
    return lambda image: all(condition(image) for condition in conditions)


def narrow(image: ImageSummary, filters: Iterable[str]) -> bool:
    """Leave an image those of its names that every `reference` filter allows, as Docker lists it; False if none is."""
    allowed = [_referenced(value) for key, _, value in (each.partition("=") for each in filters) if key == "reference"]
    for names in (image.repo_tags, image.repo_digests):
        names[:] = [name for name in names if all(test(name) for test in allowed)]
    return bool(image.repo_tags or image.repo_digests)


def _referenced(value: str) -> Callable[[str], bool]:
    pattern, wanted = value.removeprefix("!"), not value.startswith("!")
    return lambda name: _names(name, pattern) is wanted


def _condition(text: str, now: float) -> Condition:
    key, equals, value = text.partition("=")
    make = _KNOWN.get(key)
    if make is None or not equals or not value:
        raise InvalidArgument(f"filter {text[:200]!r}: expected KEY=VALUE with a key of {', '.join(sorted(_KNOWN))}")
    return make(value, now)


def _negatable(make: Callable[[str], Condition]) -> Callable[[str, float], Condition]:
    def made(value: str, _now: float) -> Condition:
        inner = make(value.removeprefix("!"))
        return (lambda image: not inner(image)) if value.startswith("!") else inner

    return made


def _reference(pattern: str) -> Condition:
    """Match a name, or its familiar form, or its repository alone; `*` also matches slashes."""
    return lambda image: any(_names(name, pattern) for name in (*image.repo_tags, *image.repo_digests))


def _names(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(form, pattern) for form in _forms(name))


def _forms(name: str) -> set[str]:
    repository = name.partition("@")[0] if "@" in name else name.rpartition(":")[0]
    shorter = {form.removeprefix("docker.io/") for form in (name, repository)}
    return {name, repository, *shorter, *(form.removeprefix("library/") for form in shorter)}


def _label(wanted: str) -> Condition:
    key, equals, value = wanted.partition("=")
    return lambda image: key in image.labels and (not equals or image.labels[key] == value)


def _platform(wanted: str) -> Condition:
    return lambda image: any(each == wanted or each.startswith(f"{wanted}/") for each in image.platforms)


def _flag(name: str, test: Condition) -> Callable[[str, float], Condition]:
    def made(value: str, _now: float) -> Condition:
        if value not in ("true", "false"):
            raise InvalidArgument(f"filter {name}={value[:100]!r}: expected true or false")
        return lambda image: test(image) is (value == "true")

    return made


def _until(value: str, now: float) -> Condition:
    limit = _moment("until", value, now)
    return lambda image: image.pulled_at < limit


def _since(value: str, now: float) -> Condition:
    limit = _moment("since", value, now)
    return lambda image: image.pulled_at >= limit


def _moment(key: str, value: str, now: float) -> int:
    """Return nanoseconds since 1970: so long ago ("36h", "1d12h"), or at an RFC 3339 time or date."""
    if _DURATION.fullmatch(value):
        ago = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
        return int((now - ago) * 1e9)
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        text = f"filter {key}={value[:100]!r}: expected a duration such as 36h or 7d, or a time such as 2026-01-31"
        raise InvalidArgument(text) from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1e9)


_KNOWN: dict[str, Callable[[str, float], Condition]] = {
    "reference": _negatable(_reference),
    "label": _negatable(_label),
    "platform": _negatable(_platform),
    "dangling": _flag("dangling", lambda image: not image.repo_tags),
    "encrypted": _flag("encrypted", lambda image: image.encrypted),
    "used": _flag("used", lambda image: bool(image.used_by)),
    "pinned": _flag("pinned", lambda image: image.pinned),
    "unpacked": _flag("unpacked", lambda image: image.unpacked),
    "until": _until,
    "since": _since,
}
