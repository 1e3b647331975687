"""The maps of sparse files: GNU's old headers and the three versions of its PAX records ("GNU.sparse.*").

A map lists the pieces of a file that the archive holds, one after another; everything between them is zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bulkhead.errors import InvalidArgument, ResourceExhausted
from image_svc.unpack.stream import BLOCK, Stream

#: Pieces of one file; GNU tar makes one for each run of data.
_PIECES = 1 << 18
_PREFIX = b"GNU.sparse."
#: Bytes of a number; 2^63 has 19 digits.
_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Sparse:
    """A file of `size` bytes of which the archive holds only pieces: (offset, length), in order, without overlap."""

    size: int
    pieces: tuple[tuple[int, int], ...]

    @property
    def stored(self) -> int:
        """Bytes that the archive holds."""
        return sum(length for _, length in self.pieces)


def from_header(block: bytes, stream: Stream, number: Callable[[bytes, str], int]) -> Sparse:
    """Read the map of an entry of type S: four pieces in its header, 21 in each block that may follow."""
    size = number(block[483:495], "sparse size")
    pieces: list[tuple[int, int]] = []
    part, more = block[386:482], block[482]
    while True:
        for start in range(0, len(part), 24):
            if part[start]:
                offset = number(part[start : start + 12], "sparse offset")
                pieces.append((offset, number(part[start + 12 : start + 24], "sparse length")))
        if not more:
            return _checked(size, pieces)
        _bound(len(pieces))
        extension = stream.block()
        if not extension:
            raise InvalidArgument("the map of a sparse file is cut")
        part, more = extension[:504], extension[504]


def from_records(records: Sequence[tuple[bytes, bytes]], stream: Stream, stored: int) -> tuple[Sparse, int] | None:
    """Read the map that PAX records give or announce; return it and how many of the `stored` bytes it took.

    None if the records say nothing of a map, as those of an ordinary file do not.
    """
    last = {key[len(_PREFIX) :]: value for key, value in records}
    version = (last.get(b"major", b""), last.get(b"minor", b""))
    if version == (b"1", b"0"):
        return _from_data(_natural(last.get(b"realsize", b""), "real size"), stream, stored)
    if version not in ((b"", b""), (b"0", b"0"), (b"0", b"1")):
        raise InvalidArgument("a sparse file of a version that is not known")
    if b"map" in last:
        numbers = [_natural(each, "map") for each in last[b"map"].split(b",")] if last[b"map"] else []
    elif b"numblocks" in last:
        numbers = [
            _natural(value, "map") for key, value in records if key in (_PREFIX + b"offset", _PREFIX + b"numbytes")
        ]
    else:
        return None
    return _from_numbers(_natural(last.get(b"size", b""), "size"), numbers), 0


def name(records: Mapping[bytes, bytes]) -> bytes:
    """Return the file's own name, where the entry's is made up for archivers that know no sparse files."""
    return records.get(_PREFIX + b"name", b"")


def _from_data(size: int, stream: Stream, stored: int) -> tuple[Sparse, int]:
    """Read version 1.0's map: numbers on lines of their own at the begin of the data, padded to a block."""
    text, taken = b"", 0
    wanted = -1
    numbers: list[int] = []
    while wanted < 0 or len(numbers) < wanted:
        if taken + BLOCK > stored + -stored % BLOCK:
            raise InvalidArgument("the map of a sparse file is longer than its data")
        *lines, text = (text + stream.take(BLOCK)).split(b"\n")
        taken += BLOCK
        for line in lines:
            if wanted < 0:
                wanted = 2 * _natural(line, "map")
                _bound(wanted // 2)
            elif len(numbers) < wanted:
                numbers.append(_natural(line, "map"))
        if len(text) > _DIGITS and not 0 <= wanted <= len(numbers):  # after the last number there is padding
            raise InvalidArgument("the map of a sparse file holds what is no number")
    return _from_numbers(size, numbers), taken


def _from_numbers(size: int, numbers: Sequence[int]) -> Sparse:
    if len(numbers) % 2:
        raise InvalidArgument("the map of a sparse file has an odd number of numbers")
    _bound(len(numbers) // 2)
    return _checked(size, list(zip(numbers[::2], numbers[1::2], strict=True)))


def _checked(size: int, pieces: list[tuple[int, int]]) -> Sparse:
    _bound(len(pieces))
    position = 0
    for offset, length in pieces:
        if offset < position or length < 0 or offset + length > size:
            raise InvalidArgument(f"the map of a sparse file of {size} bytes has {length} bytes at {offset}")
        position = offset + length
    return Sparse(size, tuple(pieces))


def _bound(count: int) -> None:
    if count > _PIECES:
        raise ResourceExhausted(f"a sparse file has more than {_PIECES} pieces")


def _natural(raw: bytes, what: str) -> int:
    if not raw.isdigit() or len(raw) > _DIGITS:
        raise InvalidArgument(f"{what} of a sparse file is not a number")
    return int(raw)
