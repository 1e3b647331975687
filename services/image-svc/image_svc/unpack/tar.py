"""The entries of a tar stream: ustar and v7 headers, GNU long names, PAX records, as Go's archive/tar reads them.

Go's reading is the reference because every image was checked against it: records of a global PAX header are ignored,
links, directories and devices carry no data whatever their size field says, and the archive ends at its first pair of
zero blocks.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from bulkhead.errors import BulkheadError, InvalidArgument
from image_svc.unpack import sparse
from image_svc.unpack.sparse import Sparse
from image_svc.unpack.stream import BLOCK, Stream

_ZERO = bytes(BLOCK)
#: Bytes of one PAX header or GNU long name; Go allows 1 MiB too (maxSpecialFileSize).
_SPECIAL_LIMIT = 1024 * 1024
_ADLER = 65521
_MAX_SECONDS = 1 << 34  # what ext4 can store, until the year 2446; also keeps nanoseconds within 64 bits
_XATTR = b"SCHILY.xattr."
_KNOWN = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"))

REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_WITHOUT_DATA = frozenset((LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))


@dataclass(slots=True)
class Entry:
    """One entry; paths are as the archive has them, times in nanoseconds since 1970."""

    name: bytes
    kind: bytes
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    link: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    #: For a file with holes, whose `size` is then what the archive holds of it.
    sparse: Sparse | None = None


@dataclass(slots=True)
class _Extra:
    """What the extension headers before an entry said about it."""

    name: bytes = b""
    link: bytes = b""
    records: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    #: Those that tell of holes, in order, since some occur several times.
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)


def shown(name: bytes) -> str:
    """Return a path from a layer as text fit for a message: escaped, at most 200 characters."""
    text = repr(name.decode(errors="backslashreplace"))
    return text if len(text) <= 200 else f"{text[:200]}…"


def entries(stream: Stream) -> Iterator[Entry]:
    """Yield the entries; their data must be taken, copied or skipped before the next is asked for."""
    numbers: dict[bytes, tuple[int, int, int]] = {}
    extra: _Extra | None = None
    while block := stream.block():
        if block == _ZERO:
            _end(stream, extra)
            return
        _verify(block)
        kind = block[156:157]
        size = _number(block[124:136], "size")
        if kind in b"xgLK":
            extra = _extend(extra, kind, size, stream)
            continue
        # Entries come in runs of equal mode and owner, so these three fields are parsed once for each run.
        owner = numbers.get(block[100:124])
        if owner is None:
            if len(numbers) > 1000:
                numbers.clear()
            owner = numbers[block[100:124]] = _owner(block)
        entry = _entry(block, kind, size, owner)
        if extra is not None:
            _amend(entry, extra)
        if kind == b"S" or (extra is not None and extra.sparse):
            _read_map(entry, block, extra, stream)
        extra = None
        if entry.kind in b"\x007":  # v7, which marks directories by a slash; "contiguous", which no system makes
            entry.kind = DIRECTORY if kind == b"\0" and entry.name.endswith(b"/") else REGULAR
        if entry.kind in _WITHOUT_DATA:
            entry.size = 0
        yield entry
    if extra is not None:
        raise InvalidArgument("layer ends with an extension header that belongs to no entry")


def _end(stream: Stream, extra: _Extra | None) -> None:
    if extra is not None:
        raise InvalidArgument("layer ends with an extension header that belongs to no entry")
    if stream.block() not in (b"", _ZERO):
        raise InvalidArgument("layer goes on after a single zero block: not a tar archive")
    stream.drain()


def _verify(block: bytes) -> None:
    """Check the header's checksum: the sum of its bytes, with the checksum itself counted as blanks."""
    claimed = _number(block[148:156], "checksum")
    # The low half of Adler-32 is 1 + the sum of all bytes modulo 65521, thirty times as fast as summing here.
    found = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * 32
    if (found - claimed) % _ADLER and claimed != _signed_sum(block):
        raise InvalidArgument("layer is not a tar archive: an entry's header has a wrong checksum")


def _signed_sum(block: bytes) -> int:
    """Sum as some old archivers did, with bytes from -128 to 127."""
    blanked = block[:148] + b" " * 8 + block[156:]
    return sum(blanked) - 256 * sum(1 for byte in blanked if byte > 127)


def _number(raw: bytes, what: str) -> int:
    """Read an octal field, ended or padded by blanks or NULs, or GNU's base-256 form (first bit set)."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=True) if raw[0] & 0x40 else int.from_bytes(raw, "big")
        return value if value < 0 else value & ~(0x80 << 8 * (len(raw) - 1))
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise InvalidArgument(f"layer is not a tar archive: {what} field {shown(raw)} is not a number")


def _owner(block: bytes) -> tuple[int, int, int]:
    return (
        _number(block[100:108], "mode") & 0o7777,
        _number(block[108:116], "uid"),
        _number(block[116:124], "gid"),
    )


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _entry(block: bytes, kind: bytes, size: int, owner: tuple[int, int, int]) -> Entry:
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        # xstar keeps two times in the last 24 bytes of the prefix and says so by "tar" at the very end.
        prefix = _text(block[345 : 476 if block[508:512] == b"tar\0" else 500])
        name = prefix + b"/" + name
    seconds = _number(block[136:148], "mtime")
    special = kind in b"34"
    device = (_number(block[329:337], "device"), _number(block[337:345], "device")) if special else (0, 0)
    return Entry(
        name,
        kind,
        size,
        *owner,
        min(max(seconds, 0), _MAX_SECONDS) * 1_000_000_000,
        _text(block[157:257]) if block[157] else b"",
        device,
        {},
    )


def _extend(extra: _Extra | None, kind: bytes, size: int, stream: Stream) -> _Extra | None:
    if not 0 <= size <= _SPECIAL_LIMIT:
        raise InvalidArgument(f"layer has an extension header of {size} bytes, at most {_SPECIAL_LIMIT} are allowed")
    data = stream.take(size)
    if kind == b"g":
        return extra
    extra = extra or _Extra()
    if kind == b"L":
        extra.name = _text(data)
    elif kind == b"K":
        extra.link = _text(data)
    else:
        _read_records(data, extra)
    return extra


def _read_records(data: bytes, extra: _Extra) -> None:
    r"""Read PAX records `LENGTH KEY=VALUE\n`; the length counts the whole record."""
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + 8)
        digits = data[position:blank] if blank > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not blank < end <= len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise InvalidArgument("layer has a malformed PAX header")
        if key in _KNOWN:
            extra.records[key] = value
        elif key.startswith(_XATTR):
            extra.xattrs[key[len(_XATTR) :]] = value
        elif key.startswith(b"GNU.sparse."):
            extra.sparse.append((key, value))
        position = end


def _amend(entry: Entry, extra: _Extra) -> None:
    records = extra.records
    entry.name = sparse.name(dict(extra.sparse)) or records.get(b"path") or extra.name or entry.name
    entry.link = records.get(b"linkpath") or extra.link or entry.link
    entry.xattrs = extra.xattrs
    if b"\0" in entry.name or b"\0" in entry.link:
        raise InvalidArgument(f"entry {shown(entry.name)}: its PAX path holds a NUL")
    for key in (b"size", b"uid", b"gid"):
        if value := records.get(key):
            if not value.isdigit() or len(value) > 20:
                raise InvalidArgument(f"entry {shown(entry.name)}: PAX {key.decode()} is not a number")
            setattr(entry, key.decode(), int(value))
    if value := records.get(b"mtime"):
        entry.mtime = _nanoseconds(value, entry.name)


def _read_map(entry: Entry, block: bytes, extra: _Extra | None, stream: Stream) -> None:
    """Read where the pieces of a file with holes lie, by its type or by the records before it."""
    try:
        if entry.kind == b"S":
            entry.kind, entry.sparse = REGULAR, sparse.from_header(block, stream, _number)
        elif extra is not None and entry.kind in b"\x000":
            found = sparse.from_records(extra.sparse, stream, entry.size)
            if found is not None:
                entry.sparse, taken = found
                entry.size -= taken
        if entry.sparse is not None and entry.sparse.stored != entry.size:
            raise InvalidArgument(f"its map of holes does not fit its {entry.size} bytes")
    except BulkheadError as error:
        raise type(error)(f"entry {shown(entry.name)}: {error}") from error


def _nanoseconds(value: bytes, name: bytes) -> int:
    """Read a PAX time: decimal seconds with an optional fraction; before 1970 becomes 1970."""
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 20 or (fraction and not fraction.isdigit()):
        raise InvalidArgument(f"entry {shown(name)}: PAX mtime is not a number")
    if whole.startswith(b"-"):
        return 0
    return min(int(whole), _MAX_SECONDS) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
