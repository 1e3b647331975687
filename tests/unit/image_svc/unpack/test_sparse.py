"""Files with holes come back as they were, in each of the five ways that GNU tar has had of writing them."""

import contextlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import BulkheadError, InvalidArgument
from image_svc.unpack import tar
from image_svc.unpack.stream import Stream

#: Gap before a piece and its bytes.
RUNS = st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=700)), max_size=30)
WAYS = ["header", "0.0", "0.1", "1.0"]


def octal(number: int) -> bytes:
    """Return a number as a field of 12 bytes."""
    return b"%011o\0" % number


def layout(runs: list[tuple[int, bytes]], tail: int) -> tuple[bytes, list[tuple[int, int]], bytes]:
    """Return a file's content, the pieces of it that are stored, and these one after another."""
    content, pieces = b"", []
    for gap, data in runs:
        content += bytes(gap)
        pieces.append((len(content), len(data)))
        content += data
    return content + bytes(tail), pieces, b"".join(data for _, data in runs)


def archive(way: str, size: int, pieces: list[tuple[int, int]], stored: bytes) -> bytes:
    """Return an archive of that one file, by the GNU tar manual, "Storing Sparse Files"."""
    info = tarfile.TarInfo("made/up")
    info.mtime = 5
    if way == "header":
        return by_header(info, size, pieces, stored)
    records = {"GNU.sparse.name": "dir/holes", "GNU.sparse.size": str(size), "GNU.sparse.numblocks": str(len(pieces))}
    if way == "0.1":
        records["GNU.sparse.map"] = ",".join(f"{offset},{length}" for offset, length in pieces)
    if way == "1.0":
        records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "dir/holes"}
        records["GNU.sparse.realsize"] = str(size)
        lines = "".join(f"{number}\n" for number in (len(pieces), *(n for piece in pieces for n in piece))).encode()
        stored = lines + bytes(-len(lines) % 512) + stored
    text = "".join(record(key, value) for key, value in records.items())
    if way == "0.0":
        for offset, length in pieces:
            text += record("GNU.sparse.offset", str(offset)) + record("GNU.sparse.numbytes", str(length))
    header = tarfile.TarInfo("PaxHeaders/x")
    header.type, header.size = tarfile.XHDTYPE, len(text.encode())
    return member(header, text.encode()) + member(info, stored) + bytes(1024)


def record(key: str, value: str) -> str:
    """Return one PAX record."""
    rest = f" {key}={value}\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return f"{length}{rest}"


def member(info: tarfile.TarInfo, data: bytes) -> bytes:
    """Return a header and its padded data."""
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def by_header(info: tarfile.TarInfo, size: int, pieces: list[tuple[int, int]], stored: bytes) -> bytes:
    """Return an entry of type S: four pieces in its header, 21 in each block after it."""
    info.name, info.type, info.size = "dir/holes", b"S", len(stored)
    fields = [octal(offset) + octal(length) for offset, length in pieces]
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:482] = b"".join(fields[:4]).ljust(96, b"\0")
    block[482] = len(fields) > 4
    block[483:495] = octal(size)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = [fields[start : start + 21] for start in range(4, len(fields), 21)]
    extensions = [b"".join(part).ljust(504, b"\0") + bytes([part is not more[-1]]) + bytes(7) for part in more]
    return bytes(block) + b"".join(extensions) + stored + bytes(-len(stored) % 512) + bytes(1024)


def read(data: bytes) -> list[tuple[tar.Entry, bytes]]:
    """Return the entries with the content that their pieces make."""
    found = []
    source = io.BytesIO(data)
    stream = Stream(source.readinto, 1 << 30)
    for entry in tar.entries(stream):
        stored = stream.take(entry.size) if 0 <= entry.size < 1 << 20 else b""
        content = bytearray(stored)
        if entry.sparse is not None and entry.sparse.size < 1 << 20:
            content = bytearray(entry.sparse.size)
            for offset, length in entry.sparse.pieces:
                content[offset : offset + length], stored = stored[:length], stored[length:]
        found.append((entry, bytes(content)))
    return found


@pytest.mark.parametrize("way", WAYS)
@given(runs=RUNS, tail=st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_holes_come_back(way: str, runs: list[tuple[int, bytes]], tail: int) -> None:
    """Content, name and what follows are the same whichever way the map is written."""
    content, pieces, stored = layout(runs, tail)
    after = member(tarfile.TarInfo("after"), b"x" * 600)
    data = archive(way, len(content), pieces, stored)

    [(entry, found), (last, rest)] = read(data[:-1024] + after + bytes(1024))

    assert (entry.name, entry.kind, found) == (b"dir/holes", tar.REGULAR, content)
    assert (last.name, rest) == (b"after", b"x" * 600)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("size", "pieces", "stored"),
    [
        (100, [(0, 50), (40, 10)], bytes(60)),
        (100, [(90, 20)], bytes(20)),
        (100, [(50, 10), (0, 10)], bytes(20)),
        (100, [(0, 10)], bytes(30)),
        (100, [(0, 40)], bytes(30)),
    ],
    ids=["overlap", "beyond the end", "backwards", "too much data", "too little data"],
)
def test_maps_that_make_no_sense(way: str, size: int, pieces: list[tuple[int, int]], stored: bytes) -> None:
    """Pieces must follow each other within the file, and be what the archive holds; the entry is named."""
    with pytest.raises(InvalidArgument, match=r"entry 'dir/holes'.*(map|sparse)"):
        read(archive(way, size, pieces, stored))


def test_an_unknown_version_is_refused() -> None:
    """A map that cannot be read would else become the file's content."""
    data = archive("1.0", 10, [(0, 1)], b"x").replace(b"GNU.sparse.minor=0", b"GNU.sparse.minor=7")

    with pytest.raises(InvalidArgument, match="version"):
        read(data)


@given(way=st.sampled_from(WAYS), runs=RUNS, cut=st.integers(0, 4000), junk=st.binary(max_size=40), at=st.integers(0))
@settings(max_examples=200, deadline=None)
def test_damaged_maps_end_in_an_error(way: str, runs: list[tuple[int, bytes]], cut: int, junk: bytes, at: int) -> None:
    """Whatever is written over a map, reading it ends, with an error or without, and never with another one."""
    content, pieces, stored = layout(runs, 0)
    data = bytearray(archive(way, len(content), pieces, stored))
    position = at % len(data)
    data[position : position + len(junk)] = junk

    with contextlib.suppress(BulkheadError):
        read(bytes(data[: len(data) - cut]))
