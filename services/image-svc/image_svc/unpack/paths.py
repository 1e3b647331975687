"""Lists of paths that a worker wrote and another step reads: NUL-ended, relative, without links or `..`."""

import os
from collections.abc import Iterator

from bulkhead.errors import DataLoss

#: Bytes of one list; a worker that was taken over could write anything.
LIMIT = 256 * 1024 * 1024
_CHUNK = 256 * 1024


class PathList:
    """Writes paths to a descriptor in large pieces."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = bytearray()
        self.count = 0

    def add(self, path: bytes) -> None:
        """Append one path."""
        self.count += 1
        self._pending += path + b"\0"
        if len(self._pending) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        while self._pending:
            del self._pending[: os.write(self._fd, self._pending)]


def read(fd: int) -> Iterator[bytes]:
    """Yield the paths behind a descriptor; DataLoss if the list is cut or too long."""
    rest = b""
    total = 0
    while chunk := os.read(fd, _CHUNK):
        total += len(chunk)
        *whole, rest = (rest + chunk).split(b"\0")
        if total > LIMIT or len(rest) > 4096:
            raise DataLoss("list of paths beside a layer is not one")
        yield from whole
    if rest:
        raise DataLoss("list of paths beside a layer is cut")


def ancestors(path: bytes) -> Iterator[bytes]:
    """Yield the path itself, then each directory above it, b"." last."""
    while path and path != b".":
        yield path
        path = path.rpartition(b"/")[0]
    yield b"."
