"""From a layer blob to its tar stream, in bounded memory whatever the compression ratio."""

import io
from collections.abc import Iterable, Iterator
from typing import IO, cast

import zstandard
from isal import igzip_lib

from bulkhead.errors import DataLoss

#: Bytes handed on at once.
OUTPUT = 1 << 20
#: Bytes fed at once; a gzip file of many members (eStargz has one a file) copies what is left at each member's end.
_SLICE = 64 * 1024
#: libzstd's own default limit, stated: a frame that needs a larger window is refused.
_WINDOW = 128 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: Skippable frames, which zstd:chunked puts its table of contents in, may come first.
_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))


def tar_stream(blob: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Yield the tar of a layer blob; DataLoss if it cannot be decompressed.

    The first bytes decide, not the media type, which some builders get wrong; containerd does the same.
    """
    blocks = iter(blob)
    head = b""
    for block in blocks:
        head += block
        if len(head) >= 4:
            break
    rest = _chain(head, blocks)
    if head.startswith(_GZIP):
        return _gunzip(rest, where)
    if head.startswith((_ZSTD, *_SKIPPABLE)):
        return _unzstd(rest, where)
    return rest


def _chain(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from blocks


def _gunzip(blob: Iterator[bytes], where: str) -> Iterator[bytes]:
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    fresh = True
    try:
        for piece in _slices(blob):
            data = piece
            while data or not (member.needs_input or member.eof):
                if fresh and not (data := data.lstrip(b"\0")):
                    break  # zero padding after the last member
                out = member.decompress(data, OUTPUT)
                fresh, data = False, b""
                if out:
                    yield out
                if member.eof:
                    data, fresh = member.unused_data, True
                    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    except igzip_lib.error as error:  # type: ignore[misc] # typed as a value, is an exception
        raise DataLoss(f"{where}: gzip: {error}") from error
    if not fresh:
        raise DataLoss(f"{where}: gzip: the stream ends in the middle")


def _slices(blob: Iterator[bytes]) -> Iterator[bytes]:
    for block in blob:
        for start in range(0, len(block), _SLICE):
            yield block[start : start + _SLICE]


def _unzstd(blob: Iterator[bytes], where: str) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    source = _Readable(blob)
    with decompressor.stream_reader(
        cast(IO[bytes], source), read_size=_SLICE, read_across_frames=True, closefd=False
    ) as reader:
        try:
            while out := reader.read(OUTPUT):
                yield out
        except zstandard.ZstdError as error:
            raise DataLoss(f"{where}: zstd: {error}") from error


class _Readable(io.RawIOBase):
    """Blocks as a file, for zstandard's reader, which asks for as much as it has room for."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes, none at the end."""
        if not self._left:
            self._left = memoryview(next(self._blocks, b""))
        taken, self._left = self._left[:size], self._left[size:]
        return bytes(taken)
