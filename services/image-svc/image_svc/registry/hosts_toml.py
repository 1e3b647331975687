"""`hosts.toml`: the endpoints of one registry, as containerd's docs/hosts.md describes the file.

Where containerd logs a mistake and silently goes on with the upstream, a mistake here is an error that names file
and line: a mirror that was configured and is not used is worse than a pull that says why it failed.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bulkhead.config.duration import parse_duration
from bulkhead.errors import FailedPrecondition
from image_svc.registry import regular

CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
_TABLE_KEYS = frozenset({"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"})


@dataclass(frozen=True)
class HostTable:
    """One endpoint as the file has it; an empty url stands for the registry's own address."""

    url: str = ""
    capabilities: frozenset[str] = CAPABILITIES
    ca: tuple[Path, ...] = ()
    #: Certificate and key; the key is None where both are in one file.
    client: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool | None = None
    header: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    override_path: bool = False
    #: Seconds; 0 for the default.
    dial_timeout: float = 0.0
    #: Where it stands, for people.
    source: str = field(default="", compare=False)


class HostsFileError(FailedPrecondition):
    """A hosts.toml that cannot be used; the message names file, line and mistake."""


def load(path: Path) -> tuple[list[HostTable], list[str]] | None:
    """Return the endpoints of a file in the order to be asked, the server last, and what it says that is not known.

    None for a file that is empty or not there.
    """
    try:
        data = regular.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = "; image-svc runs without privileges" if isinstance(error, PermissionError) else ""
        raise HostsFileError(f"{path}: {error.strerror}{hint}") from error
    try:
        return parse(data.decode(), path) if data else None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise HostsFileError(f"{path}: not UTF-8 (at line {line})") from error


def parse(text: str, path: Path) -> tuple[list[HostTable], list[str]]:
    """Read the text of a hosts.toml that lies at `path`, to which relative certificate paths belong."""
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise HostsFileError(f"{path}: {error}") from error
    reader = _Reader(text, path)
    hosts = tree.pop("host", {})
    if not isinstance(hosts, dict):
        raise reader.error((), "host", "must be a table for each host")
    server = tree.pop("server", "")
    if not isinstance(server, str):
        raise reader.error((), "server", "must be a string")
    tables = [reader.table(("host", url), url, value) for url, value in hosts.items()]
    tables.append(reader.table((), server, tree))
    return tables, reader.unknown


class _Reader:
    """Turns TOML values into a HostTable, with errors that know their line."""

    def __init__(self, text: str, path: Path) -> None:
        self._lines = text.splitlines()
        self._path = path
        self.unknown: list[str] = []

    def table(self, at: tuple[str, ...], url: str, value: object) -> HostTable:
        if not isinstance(value, dict):
            raise self.error(at[:-1], at[-1], "must be a table")
        for key in value.keys() - _TABLE_KEYS:
            self.unknown.append(f"{self._path}:{self._line(at, key)}: {key!r} is not known and has no effect")
        return HostTable(
            url=self._url(at, url),
            capabilities=self._capabilities(at, value.get("capabilities", [])),
            ca=tuple(self._file(p) for p in self._strings(at, "ca", value.get("ca", []))),
            client=self._client(at, value.get("client", [])),
            skip_verify=self._boolean(at, "skip_verify", value.get("skip_verify")),
            header=tuple(self._header(at, value.get("header", {}))),
            override_path=bool(self._boolean(at, "override_path", value.get("override_path"))),
            dial_timeout=self._duration(at, value.get("dial_timeout", "")),
            source=self._source(at, url),
        )

    def _source(self, at: tuple[str, ...], url: str) -> str:
        if at:
            return f"{self._path}:{self._line(at[:-1], at[-1])}: host"
        if url:
            return f"{self._path}:{self._line((), 'server')}: server"
        return f"{self._path}: the registry itself, since no server is set"

    def error(self, at: tuple[str, ...], key: str, why: str) -> HostsFileError:
        return HostsFileError(f"{self._path}: {'.'.join((*at, key))}: {why} (at line {self._line(at, key)})")

    def _url(self, at: tuple[str, ...], url: str) -> str:
        if not url and not at:
            return ""
        full = url if url.startswith("http") else f"https://{url}"
        try:
            parts = urlsplit(full)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            sound = sound and (full is url or "://" not in url)
        except ValueError:
            sound = False
        if not sound:
            raise self.error(at[:-1], at[-1] if at else "server", f"{url!r} is not an http or https address")
        return full

    def _capabilities(self, at: tuple[str, ...], value: object) -> frozenset[str]:
        names = [name.lower() for name in self._strings(at, "capabilities", value, single=False)]
        for name in names:
            if name not in CAPABILITIES:
                raise self.error(at, "capabilities", f"unknown capability {name!r}")
        return frozenset(names) or CAPABILITIES

    def _strings(self, at: tuple[str, ...], key: str, value: object, *, single: bool = True) -> list[str]:
        if isinstance(value, str) and single:
            return [value]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        raise self.error(at, key, f"must be {'a string or ' if single else ''}an array of strings")

    def _client(self, at: tuple[str, ...], value: object) -> tuple[tuple[Path, Path | None], ...]:
        pairs: list[tuple[Path, Path | None]] = []
        for item in [value] if isinstance(value, str) else self._items(at, value):
            if isinstance(item, str):
                pairs.append((self._file(item), None))
                continue
            cert_and_key = self._strings(at, "client", item, single=False)
            if len(cert_and_key) != 2:
                raise self.error(at, "client", "a pair must be a certificate and a key")
            pairs.append((self._file(cert_and_key[0]), self._file(cert_and_key[1]) if cert_and_key[1] else None))
        return tuple(pairs)

    def _items(self, at: tuple[str, ...], value: object) -> list[Any]:
        if not isinstance(value, list):
            raise self.error(at, "client", "must be a string, an array of strings or an array of pairs")
        return value

    def _boolean(self, at: tuple[str, ...], key: str, value: object) -> bool | None:
        if value is not None and not isinstance(value, bool):
            raise self.error(at, key, "must be true or false")
        return value

    def _header(self, at: tuple[str, ...], value: object) -> Iterable[tuple[str, str]]:
        if not isinstance(value, dict):
            raise self.error(at, "header", "must be a table")
        for name, given in value.items():
            for text in self._strings((*at, "header"), name, given):
                if not name.isascii() or not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name):
                    raise self.error((*at, "header"), name, "is not a header name")
                if not text.isascii() or any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in text):
                    raise self.error((*at, "header"), name, "holds characters that no header may have")
                # As Go's client sends it.
                yield name, text.strip(" \t")

    def _duration(self, at: tuple[str, ...], value: object) -> float:
        try:
            seconds = parse_duration(value) if isinstance(value, str) else -1.0
        except ValueError:
            seconds = -1.0
        if seconds < 0:
            raise self.error(at, "dial_timeout", f'{value!r} is not a duration such as "30s"')
        return seconds

    def _file(self, name: str) -> Path:
        return self._path.parent / name

    def _line(self, at: tuple[str, ...], key: str) -> int:
        """Return the line of a key in a table, else that of the table's header, else 1."""
        here: tuple[str, ...] = ()
        best = 1
        for number, line in enumerate(self._lines, 1):
            stripped = line.strip()
            if stripped.startswith("["):
                here = _header_path(stripped)
                if here in (at, (*at, key)):
                    best = number
            elif here == at and _key_of(stripped) == key:
                return number
        return best


def _header_path(line: str) -> tuple[str, ...]:
    """Return the keys of a `[a."b".c]` line, or nothing recognisable for a line that is not one."""
    try:
        tree: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ("[",)
    keys = []
    while isinstance(tree, dict) and tree:
        key, tree = next(iter(tree.items()))
        keys.append(key)
    return tuple(keys)


def _key_of(line: str) -> str:
    return line.partition("=")[0].strip().strip("\"'")
