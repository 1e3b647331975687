"""The tar reader of archives takes what tools write and refuses the rest by name, whatever the bytes are."""

import io
import tarfile
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import BulkheadError, DataLoss, InvalidArgument
from image_svc.transfer.tar import Entry, Kind, Reader, entries


def read(data: bytes, piece: int = 700) -> list[tuple[Entry, bytes]]:
    """Return every entry with its data, the stream cut into pieces."""
    reader = Reader(data[start : start + piece] for start in range(0, len(data), piece))
    return [(entry, b"".join(reader.data(entry.size))) for entry in entries(reader)]


def made(*members: tarfile.TarInfo, style: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of members, files filled with "x"."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=style) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    """Return a header."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("piece", [1, 512, 10_000])
def test_all_formats(style: int, piece: int) -> None:
    """Names of every length, sizes and links come out as they went in, in pieces of any size."""
    long = "d" * 90 + "/" + "f" * 90
    data = made(
        member("dir", tarfile.DIRTYPE),
        member("./dir/a", size=700),
        member(long, size=3),
        member("dir/link", tarfile.SYMTYPE, link="../" + "t" * 80),
        member("hard", tarfile.LNKTYPE, link="dir/a"),
        style=style,
    )
    found = [(entry.name, entry.kind, entry.size, entry.link, len(content)) for entry, content in read(data, piece)]
    assert found == [
        ("dir", Kind.DIRECTORY, 0, "", 0),
        ("dir/a", Kind.FILE, 700, "", 700),
        (long, Kind.FILE, 3, "", 3),
        ("dir/link", Kind.SYMLINK, 0, "t" * 80, 0),
        ("hard", Kind.LINK, 0, "dir/a", 0),
    ]


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "..", "x" * 1100])
def test_names_that_lead_out(name: str) -> None:
    """Absolute names, names that climb out and endless ones are refused; so are links that do."""
    with pytest.raises(InvalidArgument, match="leads out of the archive"):
        read(made(member(name, size=1)))
    with pytest.raises(InvalidArgument, match="leads out of the archive"):
        read(made(member("link", tarfile.SYMTYPE, link=name)))


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE])
def test_devices(kind: bytes) -> None:
    """An archive of images has no use for devices."""
    with pytest.raises(InvalidArgument, match="neither file, directory nor link"):
        read(made(member("dev", kind)))


def test_giant_extension_headers() -> None:
    """A header that claims to have gigabytes of extensions is refused before they are read."""
    header = member("x", tarfile.XHDTYPE, size=5 << 30).tobuf(tarfile.GNU_FORMAT)

    def endless() -> Iterator[bytes]:
        yield header
        raise AssertionError("more was read")

    with pytest.raises(InvalidArgument, match="extension header"):
        list(entries(Reader(endless())))


def test_many_extension_records() -> None:
    """The largest header of the shortest records takes time in proportion to its size, not to its square."""
    records = b"5 a=\n" * ((1 << 20) // 5)
    header = member("x", tarfile.XHDTYPE, size=len(records)).tobuf(tarfile.GNU_FORMAT)
    data = header + records + bytes(-len(records) % 512) + made(member("a", size=3))
    began = time.process_time()
    assert [entry.name for entry, _ in read(data, len(data))] == ["a"]
    assert time.process_time() - began < 1.0


def test_cut() -> None:
    """An archive that ends within an entry was cut; one without the blocks at its end was not."""
    data = made(member("a", size=1000))
    with pytest.raises(DataLoss, match="cut"):
        read(data[:1000])
    with pytest.raises(DataLoss, match="cut"):
        read(data[:300])
    assert [entry.name for entry, _ in read(data[:1536])] == ["a"]


@given(st.binary(max_size=2000), st.integers(0, 3000))
def test_any_bytes(noise: bytes, position: int) -> None:
    """A damaged archive fails with an error of ours or reads as another; it neither hangs nor crashes."""
    sound = made(member("a", size=600), member("n" * 120, size=5), member("l", tarfile.SYMTYPE, link="a"))
    for data in (noise, sound[:position] + noise + sound[position + len(noise) :]):
        try:
            for entry, content in read(data):
                assert len(content) == entry.size
                assert not entry.name.startswith(("/", ".."))
        except BulkheadError:
            pass
