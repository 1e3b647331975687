"""Archives compressed with bzip2 and xz, as `docker load` takes them, in bounded memory."""

import bz2
import lzma
import subprocess
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import BulkheadError, DataLoss, ResourceExhausted
from image_svc.decompress import OUTPUT
from image_svc.transfer import compression

BODY = bytes(range(256)) * 700


def read(data: bytes, size: int = 1000) -> bytes:
    """Decompress data given in blocks."""
    return b"".join(compression.archive_stream(data[at : at + size] for at in range(0, len(data), size)))


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress], ids=["bzip2", "xz"])
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_shapes(pack: Callable[[bytes], bytes], size: int) -> None:
    """One stream, streams after one another, empty ones, and zeros between and behind them."""
    for data in (
        pack(BODY),
        pack(BODY[:5]) + pack(BODY[5:]),
        pack(BODY[:5]) + bytes(8) + pack(b"") + pack(BODY[5:]) + bytes(512),
    ):
        assert read(data, size) == BODY


@pytest.mark.parametrize("program", ["bzip2", "xz", "gzip", "zstd"])
def test_programs(program: str) -> None:
    """What the programs write that people pack archives with."""
    packed = subprocess.run([program, "-9", "-c"], input=BODY, capture_output=True, check=True, timeout=30).stdout
    assert read(packed) == BODY


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress], ids=["bzip2", "xz"])
def test_what_is_cut_or_wrong(pack: Callable[[bytes], bytes]) -> None:
    """An end in the middle, a wrong byte and rubbish behind the end are DataLoss that says of what."""
    good = pack(BODY)
    wrong = bytearray(good)
    wrong[len(wrong) // 2] ^= 0xFF
    for data in (good[:-1], good[: len(good) // 2], good[:10], bytes(wrong), good + b"rubbish", good + good[:20]):
        with pytest.raises(DataLoss, match=r"archive: (bzip2|xz): "):
            read(data)


def test_a_dictionary_without_end() -> None:
    """An xz stream that asks for more memory than archives get is refused before it has it; `xz -9` is not."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20}]
    packed = lzma.compress(b"x", filters=filters)
    with pytest.raises(ResourceExhausted, match="more than 132 MiB"):
        read(packed)
    assert read(lzma.compress(BODY, preset=9)) == BODY


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress], ids=["bzip2", "xz"])
def test_bomb(pack: Callable[[bytes], bytes]) -> None:
    """A block that holds thousands of times its size comes out in pieces of at most a MiB, one at a time."""
    bomb = pack(bytes(64 << 20))
    tracemalloc.start()
    sizes = [len(piece) for piece in compression.archive_stream([bomb])]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= OUTPUT
    assert peak < 24 << 20


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress], ids=["bzip2", "xz"])
def test_streams_without_end(pack: Callable[[bytes], bytes]) -> None:
    """A block of tens of thousands of empty streams takes time in proportion to its size, not to its square."""
    empty = pack(b"")
    block = empty * ((3 << 20) // len(empty))
    began = time.process_time()
    assert list(compression.archive_stream([block])) == []
    assert time.process_time() - began < 2.0


def test_names_of_ways() -> None:
    """The ways that only archives may be compressed in have names, the others none."""
    assert [compression.unusual(head) for head in (b"BZh91AY&", b"\xfd7zXZ\0\0\4", b"\x1f\x8b\x08", b"etc/")] == [
        "bzip2",
        "xz",
        "",
        "",
    ]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([b"BZh9", b"BZh91AY&SY", b"\xfd7zXZ\0", lzma.compress(b"abc")]), st.binary(max_size=200))
def test_any_bytes(head: bytes, data: bytes) -> None:
    """Any bytes are a stream to hand on, or an error of ours."""
    try:
        read(head + data, 17)
    except BulkheadError:
        return
