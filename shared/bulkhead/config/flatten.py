"""From one TOML document to flat model values: every key is checked against the schema on the way.

Strictness: a wrong type or value anywhere we read fails, with file, line and key; an unknown key in a CRI table
fails unless containerd knew it (then a warning); an unknown key at the top level or another plugin's table is
ignored with one warning; a deprecated key works and warns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bulkhead.config.document import Document, KeyPath
from bulkhead.config.duration import parse_duration
from bulkhead.config.own import read_own
from bulkhead.config.schema import PLUGINS_V1, PLUGINS_V2, PLUGINS_V3, TOP, Each, Option, Table
from bulkhead.errors import InvalidArgument

NEWEST_VERSION = 3
_CRI_PREFIXES = ("io.containerd.cri.v1.", "io.containerd.grpc.v1.cri")


@dataclass(frozen=True)
class Value:
    """A value and where it came from ("file:line")."""

    value: Any
    origin: str


@dataclass
class Flat:
    """Model paths to values, and what is to be said about the file."""

    values: dict[KeyPath, Value]
    warnings: list[str]


def flatten(document: Document) -> Flat:
    """Check one document and return its values by model path."""
    flat = Flat({}, [])
    version = document.values.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= NEWEST_VERSION:
        where = document.where(("version",))
        raise InvalidArgument(f"{where}: version is {version!r}, expected 1 to {NEWEST_VERSION}")
    plugins = {1: PLUGINS_V1, 2: PLUGINS_V2, 3: PLUGINS_V3}[version]
    for key, value in document.values.items():
        path = (key,)
        if key == "plugins":
            _plugins(document, flat, plugins, _table(document, path, value))
        elif key == "bulkhead":
            for target, own in read_own(_table(document, path, value), lambda p: document.where(("bulkhead", *p))):
                flat.values[target] = Value(own, document.where(("bulkhead", *target[1:])))
        elif key in TOP:
            _walk(document, flat, TOP[key], path, value, ())
        elif key != "imports":
            flat.warnings.append(f"{document.where(path)}: {key} is not a key of containerd's file: ignored")
    return flat


def _plugins(document: Document, flat: Flat, known: dict[str, Table], plugins: dict[str, Any]) -> None:
    for name, content in plugins.items():
        path = ("plugins", name)
        where = document.where(path)
        if name in known:
            for key, value in _table(document, path, content).items():
                _member(document, flat, known[name], (*path, key), value, ())
        elif name.startswith(_CRI_PREFIXES):
            expected = ", ".join(f'"{item}"' for item in known)
            raise InvalidArgument(f"{where}: plugins.{name!r} is not a table of this version; expected {expected}")
        else:
            flat.warnings.append(f"{where}: plugin {name} is containerd's own: ignored")


def _member(document: Document, flat: Flat, table: Table, path: KeyPath, value: Any, names: tuple[str, ...]) -> None:
    """One key of a table with a schema: unknown keys fail here."""
    node = table.get(path[-1])
    if node is None:
        close = ", ".join(sorted(table))
        raise InvalidArgument(f"{document.where(path)}: unknown key {_dotted(path)}; this table knows {close}")
    _walk(document, flat, node, path, value, names)


def _walk(
    document: Document, flat: Flat, node: Option | Each | Table, path: KeyPath, value: Any, names: tuple[str, ...]
) -> None:
    if isinstance(node, Option):
        _option(document, flat, node, path, value, names)
    elif isinstance(node, Each):
        for name, inner in _table(document, path, value).items():
            if path[-1] == "runtimes" and inner == {}:
                # A handler without a single key is one all the same, with every default.
                flat.values["runtime", "runtimes", name] = Value({}, document.where((*path, name)))
            _walk(document, flat, node.inner, (*path, name), inner, (*names, name))
    else:
        for key, inner in _table(document, path, value).items():
            _member(document, flat, node, (*path, key), inner, names)


def _option(document: Document, flat: Flat, option: Option, path: KeyPath, value: Any, names: tuple[str, ...]) -> None:
    where, dotted = document.where(path), _dotted(path)
    shown = "(hidden)" if option.secret else repr(value)
    converted, expected = _KINDS[option.kind](value)
    if not expected and option.check is not None:
        expected = option.check(converted)
    if expected:
        raise InvalidArgument(f"{where}: {dotted} is {shown}, {expected}")
    if option.deprecated:
        flat.warnings.append(f"{where}: {dotted}: {option.deprecated}")
    if not option.target:
        if not option.deprecated:
            flat.warnings.append(f"{where}: {dotted} is containerd's own: no effect here")
        return
    target = tuple(names[0] if part == "*" else part for part in option.target.split("."))
    _assign(flat, target, converted, where)


def _assign(flat: Flat, target: KeyPath, value: Any, where: str) -> None:
    if target == ("runtime", "cni", "bin_dirs") and isinstance(value, str):
        value = (value,)  # bin_dir, the one directory of version 2
    elif target == ("images", "registry", "config_path"):
        value = tuple(part for part in value.split(":") if part)
    if target[:2] == ("runtime", "runtimes") and len(target) == 4 and target[3] == "options":
        for key, item in value.items():
            flat.values[(*target, key)] = Value(item, where)
        return
    flat.values[target] = Value(value, where)


def _table(document: Document, path: KeyPath, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{document.where(path)}: {_dotted(path)} is {value!r}, expected a table")
    return value


def _dotted(path: KeyPath) -> str:
    return ".".join(part if part.replace("-", "").replace("_", "").isalnum() else f'"{part}"' for part in path)


def _plain(kind: type, words: str) -> Callable[[Any], tuple[Any, str]]:
    def convert(value: Any) -> tuple[Any, str]:
        # bool is an int in Python, not in TOML.
        good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return value, "" if good else f"expected {words}"

    return convert


def _strings(value: Any) -> tuple[Any, str]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value), ""
    return value, "expected an array of strings"


def _duration(value: Any) -> tuple[Any, str]:
    if not isinstance(value, str):
        return value, 'expected a Go duration string such as "4h" or "30s"'
    try:
        return parse_duration(value), ""
    except ValueError as error:
        return value, str(error)


def _seconds(value: Any) -> tuple[Any, str]:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value), ""
    return value, "expected a whole number of seconds"


_KINDS: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "bool": _plain(bool, "true or false"),
    "int": _plain(int, "a whole number"),
    "str": _plain(str, "a string"),
    "strs": _strings,
    "duration": _duration,
    "seconds": _seconds,
    "table": _plain(dict, "a table"),
}


def merge(flats: list[Flat]) -> Iterator[tuple[KeyPath, Value]]:
    """Yield every value that holds once all files were read: the last file that sets it wins.

    A stream processor is replaced as a whole, as containerd does.
    """
    merged: dict[KeyPath, Value] = {}
    for flat in flats:
        redefined = {path[1] for path in flat.values if path[0] == "stream_processors"}
        merged = {
            path: value
            for path, value in merged.items()
            if not (path[0] == "stream_processors" and path[1] in redefined)
        }
        merged.update(flat.values)
    yield from merged.items()
