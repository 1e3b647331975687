"""One TOML file: its values, and the line on which each key stands, for errors that can be acted on."""

import glob
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulkhead.errors import InvalidArgument, NotFound, PermissionDenied

#: A configuration larger than this is a mistake (a log or a core given by a wrong path).
SIZE_LIMIT = 4 * 1024 * 1024
IMPORT_LIMIT = 1000

KeyPath = tuple[str, ...]

_KEY = r"(?:\"(?:[^\"\\]|\\.)*\"|'[^']*'|[A-Za-z0-9_-]+)"
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]\]?\s*(?:#.*)?")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")


@dataclass(frozen=True)
class Document:
    """A parsed file. `lines` maps the path of a key or table to its line number, counted from 1."""

    path: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]

    def where(self, path: KeyPath) -> str:
        """Return "file:line" of a key, or of the nearest table around it, or the file alone."""
        for end in range(len(path), 0, -1):
            if (line := self.lines.get(path[:end])) is not None:
                return f"{self.path}:{line}"
        return self.path


def read(path: str) -> Document:
    """Read and parse one file; an error names the file and, for bad TOML, line and column."""
    try:
        size = os.stat(path).st_size
        if size > SIZE_LIMIT:
            raise InvalidArgument(f"{path}: {size} bytes, a configuration has at most {SIZE_LIMIT}")
        text = Path(path).read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except (PermissionError, IsADirectoryError) as error:
        raise PermissionDenied(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{path}: not valid TOML: {error}") from error
    return Document(path, values, _lines(text))


def read_with_imports(path: str) -> list[Document]:
    """Return the file and everything it imports, in containerd's order: what comes later overrides.

    `imports` holds paths or globs, relative ones from the importing file's directory; a cycle is read once.
    """
    documents: list[Document] = []
    pending, seen = [path], set[str]()
    while pending:
        current = os.path.abspath(pending.pop(0))
        if current in seen:
            continue
        if len(seen) >= IMPORT_LIMIT:
            raise InvalidArgument(f"{path}: imports more than {IMPORT_LIMIT} files")
        seen.add(current)
        document = read(current)
        documents.append(document)
        pending.extend(_imports(document))
    return documents


def _imports(document: Document) -> list[str]:
    imports = document.values.get("imports", [])
    if not isinstance(imports, list) or not all(isinstance(item, str) for item in imports):
        raise InvalidArgument(f"{document.where(('imports',))}: imports is {imports!r}, expected an array of strings")
    found: list[str] = []
    for item in imports:
        pattern = item if os.path.isabs(item) else os.path.join(os.path.dirname(document.path), item)
        # A pattern may match nothing; a plain path must exist, which read() then says.
        found.extend(sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern])
    return found


def _lines(text: str) -> dict[KeyPath, int]:
    """Find the line of every key by a scan; a key-like line inside a multi-line string does no harm."""
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = _split(header[1])
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault(table + _split(assignment[1]), number)
    return lines


def _split(dotted: str) -> KeyPath:
    """Split a dotted key as TOML does, quoted parts included."""
    try:
        value: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str] = []
    while isinstance(value, dict):
        (key, value), *_ = value.items()
        path.append(key)
    return tuple(path)
