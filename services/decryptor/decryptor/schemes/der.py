"""As much of DER (X.690) as ocicrypt's PKCS#7 needs, reading without trust.

No library reads what ocicrypt writes: its algorithm parameters are a SEQUENCE with the primitive bit.
"""

from dataclasses import dataclass
from functools import cached_property

INTEGER, OCTET_STRING, NULL, OBJECT, SEQUENCE, SET = 0x02, 0x04, 0x05, 0x06, 0x30, 0x31
CONTEXT, CONSTRUCTED = 0x80, 0x20
#: Elements looked at in one structure.
COUNT_LIMIT = 1024


class Malformed(ValueError):
    """The bytes are not the DER that was expected."""


@dataclass(frozen=True)
class Element:
    """One element: its identifier octet, the bytes of its content, and all its bytes."""

    tag: int
    content: bytes
    raw: bytes

    @cached_property
    def parts(self) -> list["Element"]:
        """The elements inside, whatever the constructed bit says."""
        found, rest = [], self.content
        while rest:
            element, rest = read(rest)
            found.append(element)
            if len(found) > COUNT_LIMIT:
                raise Malformed("too many elements")
        return found

    def part(self, index: int, tag: int) -> "Element":
        """Return one element inside, which must have that tag up to the constructed bit."""
        parts = self.parts
        if index >= len(parts) or (parts[index].tag | CONSTRUCTED) != (tag | CONSTRUCTED):
            raise Malformed(f"element {index} is not of type {tag:#x}")
        return parts[index]

    @property
    def integer(self) -> int:
        """The content as a signed number."""
        if not self.content or len(self.content) > 128:
            raise Malformed("not an integer")
        return int.from_bytes(self.content, "big", signed=True)


def read(data: bytes) -> tuple[Element, bytes]:
    """Return the first element and the bytes after it."""
    if len(data) < 2:
        raise Malformed("ends early")
    tag, length, header = data[0], data[1], 2
    if tag & 0x1F == 0x1F:
        raise Malformed("a tag of several bytes")
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or len(data) < 2 + count:
            raise Malformed("a length that DER does not have")
        length, header = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < header + length:
        raise Malformed("ends early")
    end = header + length
    return Element(tag, data[header:end], data[:end]), data[end:]


def write(tag: int, *contents: bytes) -> bytes:
    """Return an element with that content."""
    content = b"".join(contents)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def integer(number: int) -> bytes:
    """Return a number as an element."""
    return write(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


def oid(text: str) -> bytes:
    """Return an object identifier as an element."""
    first, second, *rest = (int(part) for part in text.split("."))
    out = bytearray()
    for number in (first * 40 + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        out += bytes(reversed(groups))
    return write(OBJECT, bytes(out))
