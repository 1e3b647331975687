"""Layers are decompressed in bounded memory, whatever their shape."""

import gzip
import os
import zlib
from collections.abc import Iterable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import DataLoss
from image_svc.decompress import OUTPUT, Descriptor, tar_stream


def blocks(data: bytes, size: int = 1000) -> Iterable[bytes]:
    """Cut data into blocks."""
    return (data[start : start + size] for start in range(0, len(data), size))


def unpack(data: bytes, size: int = 1000) -> bytes:
    """Decompress data given in blocks."""
    return b"".join(tar_stream(blocks(data, size), "layer"))


BODY = bytes(range(256)) * 700


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(BODY),
        gzip.compress(BODY[:5]) + gzip.compress(BODY[5:]),
        gzip.compress(BODY) + bytes(600),
        zstandard.compress(BODY),
        zstandard.compress(BODY[:7]) + zstandard.compress(BODY[7:]),
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(BODY),
        BODY,
    ],
    ids=["gzip", "members", "padded", "zstd", "frames", "skippable", "plain"],
)
@pytest.mark.parametrize("size", [1, 3, 4096, 1 << 20])
def test_shapes(data: bytes, size: int) -> None:
    """The bytes decide how to read; members and frames follow one another; zeros may pad the end."""
    assert unpack(data, size) == BODY


def test_many_members() -> None:
    """eStargz writes one gzip member a file."""
    data = b"".join(gzip.compress(b"%d" % n) for n in range(2000))

    assert unpack(data, 1 << 19) == b"".join(b"%d" % n for n in range(2000))


@pytest.mark.parametrize(
    "data",
    [gzip.compress(BODY)[:-9], gzip.compress(BODY)[:500], gzip.compress(BODY) + b"rubbish", b"\x1f\x8b\xff\xff\xff"],
)
def test_broken_gzip(data: bytes) -> None:
    """A stream that ends early or goes on with something else is DataLoss."""
    with pytest.raises(DataLoss, match="layer: gzip"):
        unpack(data)


def test_wrong_checksum() -> None:
    """gzip's own checksum is checked."""
    data = bytearray(gzip.compress(BODY))
    data[-8] ^= 1

    with pytest.raises(DataLoss):
        unpack(bytes(data))


def test_broken_zstd() -> None:
    """A frame with a wrong byte is DataLoss."""
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(BODY))
    data[-1] ^= 1

    with pytest.raises(DataLoss, match="layer: zstd"):
        unpack(bytes(data))


@pytest.mark.parametrize("compress", [lambda data: gzip.compress(data, 9), zstandard.compress])
def test_bomb(compress: object) -> None:
    """A block that holds a thousand times its size comes out in pieces of at most a MiB."""
    assert callable(compress)
    bomb = compress(bytes(64 << 20))

    sizes = [len(part) for part in tar_stream([bomb], "layer")]

    assert sum(sizes) == 64 << 20
    assert max(sizes) <= OUTPUT


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes(data: bytes, size: int) -> None:
    """Any bytes are a tar stream to hand on or DataLoss."""
    try:
        unpack(data, size)
        unpack(b"\x1f\x8b" + data, size)
    except DataLoss:
        return


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=5000), st.integers(1, 300), st.integers(0, 9))
def test_round_trip(data: bytes, size: int, level: int) -> None:
    """What gzip wrote comes back."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, 31)

    assert unpack(compressor.compress(data) + compressor.flush(), size) == data


@given(data=st.binary(max_size=3000), size=st.integers(1, 700), everything=st.booleans())
def test_a_descriptor_is_a_raw_file(data: bytes, size: int, everything: bool) -> None:
    """Reads of any size, and one of everything, give what the descriptor holds."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(data)
    source = Descriptor(reader)
    try:
        found = source.read() if everything else b"".join(iter(lambda: source.read(size), b""))
    finally:
        os.close(reader)
    assert found == data
