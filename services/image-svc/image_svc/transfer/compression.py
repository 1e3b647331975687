"""How archives come compressed: with gzip and zstd as layers do, and with bzip2 and xz as `docker load` takes them.

Layers themselves are never read here: containerd knows gzip and zstd alone for those, and so do we.
"""

import bz2
import itertools
import lzma
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from bulkhead.errors import DataLoss, ResourceExhausted
from image_svc.decompress import OUTPUT, tar_stream

#: Bytes that an xz stream may take: a dictionary of 128 MiB, twice that of `xz -9`, and the decompressor's tables.
XZ_MEMORY = 132 << 20
#: Bytes decompressed at once: a stream that ends copies what is behind it, and the shortest have 14 bytes.
_INPUT = 64 * 1024
_BZIP2, _XZ = b"BZh", b"\xfd7zXZ\x00"


class _Decompressor(Protocol):
    """What bz2 and lzma decompress one stream with."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


_KINDS: dict[bytes, tuple[str, Callable[[], _Decompressor]]] = {
    _BZIP2: ("bzip2", bz2.BZ2Decompressor),
    _XZ: ("xz", _xz),
}


def unusual(head: bytes) -> str:
    """Return what compresses bytes that begin so, if only an archive may be compressed with it; else ""."""
    return next((name for magic, (name, _) in _KINDS.items() if head.startswith(magic)), "")


def archive_stream(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the tar of an archive, at most a MiB at a time; DataLoss if it cannot be decompressed."""
    rest = iter(blocks)
    head = b""
    while len(head) < len(_XZ) and (block := next(rest, None)) is not None:
        head += block
    whole = itertools.chain([head], rest)
    for magic, (name, begin) in _KINDS.items():
        if head.startswith(magic):
            return _streams(whole, begin, f"archive: {name}")
    return tar_stream(whole, "archive")


def _streams(blocks: Iterable[bytes], begin: Callable[[], _Decompressor], where: str) -> Iterator[bytes]:
    """Yield what streams that follow one another hold, as pbzip2 and `cat` write them; zeros may come between."""
    decompressor = begin()
    for data in _cut(blocks):
        while True:
            if decompressor.eof:
                data = data.lstrip(b"\0")
                if not data:
                    break
                decompressor = begin()
            elif not data and decompressor.needs_input:
                break
            if piece := _piece(decompressor, data, where):
                yield piece
            data = decompressor.unused_data if decompressor.eof else b""
    if not decompressor.eof:
        raise DataLoss(f"{where}: it ends in the middle: it was cut")


def _cut(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), _INPUT):
            yield block[start : start + _INPUT]


def _piece(decompressor: _Decompressor, data: bytes, where: str) -> bytes:
    try:
        return decompressor.decompress(data, OUTPUT)
    except lzma.LZMAError as error:
        if "Memory usage limit" in str(error):
            raise ResourceExhausted(f"{where}: it takes more than {XZ_MEMORY >> 20} MiB to decompress") from error
        raise DataLoss(f"{where}: {error}") from error
    except (OSError, ValueError) as error:  # how bz2 says it
        raise DataLoss(f"{where}: {error}") from error
