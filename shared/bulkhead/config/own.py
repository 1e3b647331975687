"""The `[bulkhead]` table: its keys are the fields of model.Bulkhead, and an unknown one fails."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bulkhead.config.duration import parse_duration
from bulkhead.config.model import Bulkhead, KeyRule
from bulkhead.errors import InvalidArgument

_DEFAULTS = Bulkhead()
#: Durations of which 0 means "not at all".
_MAY_BE_NONE = frozenset({"bulkhead.key_check_cache"})
#: Seconds: poll(2) counts what it waits in milliseconds of 31 bits.
_LONGEST = 2_000_000.0
#: Bounds that nothing would fit within.
_ABOVE_NONE = frozenset({"bulkhead.unpack_max_entries", "bulkhead.unpack_max_bytes", "bulkhead.import_max_bytes"})


def read_own(table: dict[str, Any], where: Callable[[tuple[str, ...]], str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (model path, value) for each key; `where` turns a key's path into "file:line"."""
    fields = {field.name: getattr(_DEFAULTS, field.name) for field in dataclasses.fields(Bulkhead)}
    for key, value in table.items():
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise InvalidArgument(f"{where((key,))}: unknown key bulkhead.{key}; this table knows {known}")
        default = fields[key]
        if not isinstance(default, dict):
            yield ("bulkhead", key), _scalar(f"bulkhead.{key}", value, default, where((key,)))
            continue
        if not isinstance(value, dict):
            raise InvalidArgument(f"{where((key,))}: bulkhead.{key} is {value!r}, expected a table")
        for name, item in value.items():
            if key == "key_policy":
                yield ("bulkhead", key, name), _rule(f"bulkhead.{key}.{name}", item, where((key, name)))
                continue
            if name not in default:
                known = ", ".join(default)
                raise InvalidArgument(
                    f"{where((key, name))}: unknown key bulkhead.{key}.{name}; this table knows {known}"
                )
            yield ("bulkhead", key, name), _scalar(f"bulkhead.{key}.{name}", item, default[name], where((key, name)))


def _scalar(name: str, value: Any, default: Any, where: str) -> Any:
    """A value of the default's type; a duration may be seconds or a Go duration string."""
    if isinstance(default, bool):
        good, words = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        if isinstance(value, str):
            try:
                value = parse_duration(value)
            except ValueError as error:
                raise InvalidArgument(f"{where}: {name} is {value!r}, {error}") from error
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST
        good = good and (value > 0 or name in _MAY_BE_NONE)
        value, words = float(value) if good else value, "seconds above 0, at most 2000000, or a Go duration string"
    elif isinstance(default, int):
        good = isinstance(value, int) and not isinstance(value, bool) and value >= -1
        words = "a whole number"
        if name in _ABOVE_NONE:
            good, words = good and value > 0, "a whole number above 0"
        if name.startswith("bulkhead.metrics_ports.") and good:
            good, words = value <= 65535, "a port from 0 to 65535, or -1 for none"
    else:
        good, words = isinstance(value, str) and "\0" not in value, "a string"
    if not good:
        raise InvalidArgument(f"{where}: {name} is {value!r}, expected {words}")
    return value


def _rule(name: str, table: Any, where: str) -> KeyRule:
    """One rule of the key policy; it must name a key, or it would say nothing."""
    if not isinstance(table, dict):
        raise InvalidArgument(f"{where}: {name} is {table!r}, expected a table")
    known = [field.name for field in dataclasses.fields(KeyRule)]
    for key, value in table.items():
        if key not in known:
            raise InvalidArgument(f"{where}: unknown key {name}.{key}; this table knows {', '.join(known)}")
        kind, words = (dict, "a table of strings") if key == "pod_labels" else (list, "a list of strings")
        if not isinstance(value, kind) or not all(isinstance(item, str) for item in _leaves(value)):
            raise InvalidArgument(f"{where}: {name}.{key} is {value!r}, expected {words}")
    fields: dict[str, Any] = {key: value if key == "pod_labels" else tuple(value) for key, value in table.items()}
    rule = KeyRule(**fields)
    if not rule.keys:
        raise InvalidArgument(f"{where}: {name}.keys is empty, expected the fingerprints of keys")
    for account in rule.service_accounts:
        if account.count("/") != 1:
            raise InvalidArgument(f"{where}: {name}.service_accounts has {account!r}, expected <namespace>/<name>")
    return rule


def _leaves(value: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
