"""The entries of an image archive's tar, read once from front to back.

Only the container is read here: names, kinds, sizes and bytes. What an archive of images may hold is little (files,
directories, links among them), so everything else is refused. No name ever becomes a path on this machine.
"""

import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from bulkhead.errors import DataLoss, InvalidArgument

BLOCK = 512
#: Bytes of one PAX header or GNU long name.
_EXTENSION_LIMIT = 1 << 20
#: Characters of a name; no image format comes near it.
_NAME_LIMIT = 1024
_ENCODING = "utf-8"


class Kind(Enum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    LINK = "hard link"


_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.LINK,
}


@dataclass(frozen=True)
class Entry:
    """One entry: its name and, for links, its target as checked names within the archive."""

    name: str
    kind: Kind
    size: int
    link: str = ""


class Reader:
    """Takes bytes off a stream of blocks of any size."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._buffer = memoryview(b"")

    def block(self) -> bytes:
        """Return 512 bytes, or b"" at the end of the stream; DataLoss within a block."""
        first = b"".join(self._some(BLOCK))
        if first and len(first) < BLOCK:
            raise DataLoss(_CUT)
        return first

    def data(self, size: int) -> Iterator[bytes]:
        """Yield `size` bytes in pieces and pass over what pads them to a block; to be taken to its end."""
        taken = 0
        for piece in self._some(size):
            taken += len(piece)
            yield piece
        if taken < size:
            raise DataLoss(_CUT)
        for _ in self._some(-size % BLOCK):
            pass

    def drain(self) -> None:
        """Read to the end."""
        for _ in self._blocks:
            pass

    def _some(self, size: int) -> Iterator[bytes]:
        """Yield up to `size` bytes, fewer at the end of the stream."""
        while size:
            if not self._buffer:
                following = next(self._blocks, None)
                if following is None:
                    return
                self._buffer = memoryview(following)
                continue
            piece = self._buffer[:size]
            self._buffer = self._buffer[len(piece) :]
            size -= len(piece)
            yield bytes(piece)


def entries(reader: Reader) -> Iterator[Entry]:
    """Yield the entries; the data of each must be taken before the next is asked for.

    InvalidArgument for what is no tar, or holds what an image archive has no use for; DataLoss for one that is cut.
    """
    extension: dict[str, str] = {}
    first = True
    while block := reader.block():
        if not any(block):
            reader.drain()
            return
        info = _header(block, first=first)
        first = False
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            extension |= _extension(info, reader)
            continue
        yield _entry(info, extension)
        extension = {}


def _header(block: bytes, *, first: bool) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, _ENCODING, "surrogateescape")
    except tarfile.HeaderError as error:
        what = (
            "it is not a tar, plain or from gzip, bzip2, xz or zstd"
            if first
            else "a header in the middle of it is damaged"
        )
        raise InvalidArgument(f"archive cannot be read: {what} ({error})") from error


def _extension(info: tarfile.TarInfo, reader: Reader) -> dict[str, str]:
    if not 0 <= info.size <= _EXTENSION_LIMIT:
        raise InvalidArgument(f"archive has an extension header of {info.size} bytes, at most {_EXTENSION_LIMIT} fit")
    data = b"".join(reader.data(info.size))
    if info.type == tarfile.XGLTYPE:
        return {}
    if info.type == tarfile.XHDTYPE:
        return _records(data)
    key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
    return {key: data.partition(b"\0")[0].decode(_ENCODING, "surrogateescape")}


def _records(data: bytes) -> dict[str, str]:
    r"""Return the PAX records that matter, each `LENGTH KEY=VALUE\n`."""
    found: dict[str, str] = {}
    position = 0
    while position < len(data):
        digits, _, _ = data[position : position + 10].partition(b" ")
        end = position + (int(digits) if digits.isdigit() else 0)
        record = data[position:end]
        position = end
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise InvalidArgument("archive has a malformed PAX header")
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = value[:-1].decode(_ENCODING, "surrogateescape")
    return found


def _entry(info: tarfile.TarInfo, extension: dict[str, str]) -> Entry:
    raw = extension.get("path", info.name)
    kind = _KINDS.get(info.type)
    if kind is None:
        raise InvalidArgument(f"archive entry {raw[:200]!r} is neither file, directory nor link (type {info.type!r})")
    if info.type == tarfile.AREGTYPE and raw.endswith("/"):
        kind = Kind.DIRECTORY
    name = checked(raw, "")
    if kind is Kind.SYMLINK:
        return Entry(name, kind, 0, checked(extension.get("linkpath", info.linkname), posixpath.dirname(name)))
    if kind is Kind.LINK:
        return Entry(name, kind, 0, checked(extension.get("linkpath", info.linkname), ""))
    size = extension.get("size", str(info.size))
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise InvalidArgument(f"archive entry {raw[:200]!r}: size {size[:40]!r} is not a number of bytes")
    return Entry(name, kind, int(size) if kind is Kind.FILE else 0)


def checked(name: str, directory: str) -> str:
    """Return a path's canonical form within the archive; InvalidArgument for one that leads out of it."""
    clean = posixpath.normpath(posixpath.join(directory, name)) if name else ""
    if not clean or len(clean) > _NAME_LIMIT or "\0" in clean or clean.startswith(("/", "../")) or clean == "..":
        raise InvalidArgument(f"archive entry {name[:200]!r}: the path is empty, too long or leads out of the archive")
    return clean


_CUT = "archive ends in the middle of an entry: it was cut"
