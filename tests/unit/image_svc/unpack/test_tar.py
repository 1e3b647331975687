"""The tar reader agrees with Python's own archiver, and says clearly what it does not take."""

import io
import os
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import BulkheadError, DataLoss, InvalidArgument, ResourceExhausted
from image_svc.unpack import tar
from image_svc.unpack.stream import Stream

LIMIT = 1 << 30


def read(data: bytes, limit: int = LIMIT) -> list[tuple[tar.Entry, bytes]]:
    """Return every entry with its data, read from a file that the kernel keeps in memory."""
    return list(walk(data, limit))


def walk(data: bytes, limit: int) -> Iterator[tuple[tar.Entry, bytes]]:
    """Yield every entry with its data."""
    fd = os.memfd_create("layer")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        stream = Stream(lambda room: os.readv(fd, [room]), limit)
        for entry in tar.entries(stream):
            if not 0 <= entry.size <= 1 << 20:
                raise InvalidArgument("size")
            yield entry, stream.take(entry.size)
    finally:
        os.close(fd)


def archive(*members: tuple[tarfile.TarInfo, bytes], style: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar archive of those members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as output:
        for info, data in members:
            info.size = len(data)
            output.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """Return one member with the fields of TarInfo given."""
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=60)
PATHS = st.lists(NAMES, min_size=1, max_size=8).map("/".join)


@given(
    name=PATHS,
    data=st.binary(max_size=2000),
    mode=st.integers(0, 0o7777),
    owner=st.integers(0, 2**32 - 2),
    mtime=st.integers(0, 2**33),
    style=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_files_come_back_as_they_were_put_in(
    name: str, data: bytes, mode: int, owner: int, mtime: int, style: int
) -> None:
    """Whatever name, size, mode, owner and time an archiver writes is what is read, long names and numbers included."""
    [(entry, found)] = read(archive(member(name, data, mode=mode, uid=owner, gid=owner, mtime=mtime), style=style))

    assert (entry.name, found, entry.mode, entry.uid, entry.gid) == (name.encode(), data, mode, owner, owner)
    assert entry.mtime == mtime * 1_000_000_000
    assert entry.kind == tar.REGULAR


@given(data=st.binary(max_size=4096))
def test_random_bytes_are_refused_clearly(data: bytes) -> None:
    """Bytes that are no archive raise an error of ours, never another, and never go on for ever."""
    try:
        read(data)
    except BulkheadError as error:
        assert str(error)


@settings(max_examples=300)
@given(st.data())
def test_damaged_archives_are_refused_clearly(data: st.DataObject) -> None:
    """An archive with bytes changed, headers resealed or not, is read or refused with an error of ours."""
    good = bytearray(
        archive(
            member("a" * 150, b"x" * 700),
            member("dir", type=tarfile.DIRTYPE),
            member("dir/link", type=tarfile.SYMTYPE, linkname="b" * 120),
            member("späte", b"y", pax_headers={"SCHILY.xattr.user.a": "1", "mtime": "1.5"}),
            style=data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])),
        )
    )
    for position in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=12)):
        good[position] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        for start in range(0, len(good), 512):
            reseal(good, start)

    try:
        read(bytes(good[: data.draw(st.integers(0, len(good)))]))
    except BulkheadError as error:
        assert str(error)


def reseal(data: bytearray, start: int) -> None:
    """Give a block the checksum it should have as a header, so that what is in it gets looked at."""
    block = data[start : start + 512]
    if block[257:262] == b"ustar":
        block[148:156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(block)


def test_a_cut_stream_is_data_loss() -> None:
    """A stream that ends within a header or within data is DataLoss."""
    whole = archive(member("a", b"x" * 600))

    for length in (100, 511, 513, 700, 1024):
        with pytest.raises(DataLoss, match="cut"):
            read(whole[:length])
    assert len(read(whole[:1536])) == 1


def test_more_bytes_than_allowed_is_resource_exhausted() -> None:
    """The limit counts every byte of the stream, also behind the archive's end."""
    with pytest.raises(ResourceExhausted, match="10000 bytes"):
        read(archive(member("a", b"x")) + bytes(20_000), limit=10_000)


def test_a_wrong_checksum_is_refused() -> None:
    """One changed byte in a header fails the layer."""
    data = bytearray(archive(member("a", b"x")))
    data[0] ^= 1

    with pytest.raises(InvalidArgument, match="checksum"):
        read(bytes(data))


def test_signed_checksums_are_taken() -> None:
    """Archives of old programs that summed signed bytes are read."""
    data = bytearray(archive(member("ä", b"x")))
    block = bytes(data[:148]) + b" " * 8 + bytes(data[156:512])
    data[148:156] = b"%06o\0 " % (sum(block) - 256 * sum(byte > 127 for byte in block))

    assert read(bytes(data))[0][0].name == "ä".encode()


def test_links_and_devices_carry_no_data() -> None:
    """The size field of an entry that has no data is passed over, as Go and so every image builder does."""
    info, _ = member("link", type=tarfile.LNKTYPE, linkname="a")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"00000001000\0"
    reseal(block, 0)

    entries = read(bytes(block) + archive(member("next", b"z")))

    assert [(entry.name, entry.size) for entry, _ in entries] == [(b"link", 0), (b"next", 1)]


def test_pax_records_win_and_global_ones_do_not() -> None:
    """Path, link, owner, time with its fraction and attributes come from PAX; a global header changes nothing."""
    buffer = io.BytesIO()
    headers = {"mtime": "3.000000007", "SCHILY.xattr.user.x": "\x01y", "LIBARCHIVE.xattr.user.x": "AXk="}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "evil"}) as output:
        info, _ = member("a" * 300, type=tarfile.SYMTYPE, linkname="b" * 300, uid=2**22, gid=2**22, pax_headers=headers)
        output.addfile(info)
        output.addfile(member("plain")[0])

    [(link, _), (plain, _)] = read(buffer.getvalue())

    assert (link.name, link.link, link.uid, link.mtime) == (b"a" * 300, b"b" * 300, 2**22, 3_000_000_007)
    assert link.xattrs == {b"user.x": b"\x01y"}
    assert (plain.name, plain.xattrs) == (b"plain", {})


@pytest.mark.parametrize(
    "records",
    [b"5 a=\nx", b"99999999 path=x\n", b"path=x\n", b"6 path\n", b"0 a=b\n", b"x a=b\n", b"7 a=bcd\n", b"-6 a=b\n"],
)
def test_malformed_pax_is_refused(records: bytes) -> None:
    """A PAX header whose records do not add up is refused."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(records)
    data = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")

    with pytest.raises(InvalidArgument, match="PAX"):
        read(data + archive(member("a")))


def test_old_archives_mark_directories_by_a_slash() -> None:
    """A v7 entry without a type is a directory if its name ends in a slash, else a file."""
    kinds = [read(archive(member(name, type=tarfile.AREGTYPE)))[0][0].kind for name in ("a", "a/")]

    assert kinds == [tar.REGULAR, tar.DIRECTORY]


def test_an_extension_header_needs_an_entry() -> None:
    """An archive that ends after a long name is malformed, with and without its end marker."""
    long_name = archive(member("a" * 150))[:1024]

    for end in (b"", bytes(1024)):
        with pytest.raises(InvalidArgument, match="belongs to no entry"):
            read(long_name + end)


def test_a_single_zero_block_is_no_end() -> None:
    """One zero block between two entries is not an archive."""
    first = archive(member("a"))[:512]

    with pytest.raises(InvalidArgument, match="zero block"):
        read(first + bytes(512) + first)
    assert len(read(first + bytes(512))) == 1


def test_a_name_in_a_message_is_escaped_and_short() -> None:
    """Names reach messages without control characters and with at most 200 characters."""
    assert tar.shown(b"a\n\xff") == "'a\\n\\\\xff'"
    assert len(tar.shown(b"x" * 5000)) == 201
