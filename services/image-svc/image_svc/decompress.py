"""From a layer blob to its tar stream, in bounded memory whatever the compression ratio."""

import gzip
import io
import os
from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO, Protocol, cast

import zstandard
from isal import isal_zlib

from bulkhead.errors import DataLoss

#: Bytes handed on at once by `tar_stream`.
OUTPUT = 1 << 20
#: Bytes read at once.
_INPUT = 128 * 1024
#: libzstd's own default limit, stated: a frame that needs a larger window is refused.
_WINDOW = 128 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: Skippable frames, which zstd:chunked puts its table of contents in, may come first.
_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))

_BROKEN: tuple[type[Exception], ...] = (
    EOFError,
    gzip.BadGzipFile,
    cast(type[Exception], isal_zlib.error),  # typed as a value, is an exception
    zstandard.ZstdError,
)


class _Reader(Protocol):
    def readinto(self, room: memoryview, /) -> int: ...


class TarReader:
    """The tar of a layer blob, read from a descriptor or another raw file.

    The first bytes decide how it is compressed, not the media type, which some builders get wrong; containerd does the
    same.
    """

    def __init__(self, source: io.RawIOBase, where: str) -> None:
        """Read the first bytes; `where` begins every message."""
        self._where = where
        head = b""
        while len(head) < 4 and (piece := source.read(4 - len(head))):
            head += piece
        joined = _Headed(head, source)
        self._reader: _Reader = joined
        if head.startswith(_GZIP):
            # What igzip.IGzipFile is made of: it alone decompresses into memory that is there already.
            self._reader = isal_zlib._GzipReader(cast(BinaryIO, joined), _INPUT)
        elif head.startswith((_ZSTD, *_SKIPPABLE)):
            self._reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
                cast(IO[bytes], joined), read_size=_INPUT, read_across_frames=True, closefd=False
            )

    def fill(self, room: memoryview) -> int:
        """Fill the memory and return how many bytes that were: fewer than there is room for only at the end.

        DataLoss if the blob cannot be decompressed or ends in the middle.
        """
        have = 0
        try:
            while have < len(room) and (count := self._reader.readinto(room[have:])):
                have += count
        except _BROKEN as error:
            kind = "zstd" if isinstance(error, zstandard.ZstdError) else "gzip"
            raise DataLoss(f"{self._where}: {kind}: {error}") from error
        return have


class _Headed(io.RawIOBase):
    """A raw file whose first bytes were read already."""

    def __init__(self, head: bytes, rest: io.RawIOBase) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        """Say yes."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Read what is there, at most `size` bytes: zstandard asks like this, and io.RawIOBase would copy twice."""
        if size < 0:
            return self.readall()
        if not self._head:
            return self._rest.read(size) or b""
        head, self._head = self._head[:size], self._head[size:]
        return head

    def readinto(self, room: "memoryview | bytearray", /) -> int:  # type: ignore[override] # narrower than any buffer
        """Read what is there, at most what there is room for; 0 at the end."""
        if not self._head:
            return self._rest.readinto(room) or 0
        count = min(len(room), len(self._head))
        room[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


class Descriptor(io.RawIOBase):
    """A descriptor as a raw file; it stays open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def readable(self) -> bool:
        """Say yes."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Read what is there, at most `size` bytes; everything if that is negative."""
        return os.read(self._fd, size) if size >= 0 else self.readall()

    def readinto(self, room: "memoryview | bytearray", /) -> int:  # type: ignore[override] # narrower than any buffer
        """Read what is there, at most what there is room for; 0 at the end."""
        return os.readv(self._fd, [room])


class _Blocks(io.RawIOBase):
    """Blocks as a raw file."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, room: "memoryview | bytearray", /) -> int:  # type: ignore[override] # narrower than any buffer
        """Read from one block, at most what there is room for; 0 at the end."""
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        count = min(len(room), len(self._left))
        room[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def tar_stream(blob: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Yield the tar of a layer blob that comes in blocks; DataLoss if it cannot be decompressed."""
    reader = TarReader(_Blocks(blob), where)
    room = bytearray(OUTPUT)
    while count := reader.fill(memoryview(room)):
        yield bytes(memoryview(room)[:count])
