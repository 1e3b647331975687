"""SPDY/3 header blocks: name/value pairs behind a zlib stream that lasts as long as the connection.

Layout and dictionary: SPDY protocol draft 3.1, section 2.6.10 "Name/Value Header Block". Both zlib streams are primed
with the draft's dictionary and flushed (SYNC_FLUSH) after every block, so each block depends on all blocks before it:
a block must be decompressed even if its stream is refused.
"""

import struct
import zlib
from collections.abc import Mapping

#: A block may grow to this many bytes when decompressed, and hold this many pairs.
BLOCK_LIMIT = 64 * 1024
PAIRS_LIMIT = 100

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status|200 OK|version|HTTP/1.1|url public set-cookie "
    "keep-alive origin"
)
_CODES = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    "Internal Server Error501 Not Implemented503 Service Unavailable"
)
_VALUES = (
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,"
    "image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age"
    "=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    words: list[str] = []
    for part in _WORDS.split("|"):
        # "200 OK" holds a space: it stands alone between bars.
        words.extend([part] if part == "200 OK" else part.split())
    listed = b"".join(struct.pack(">I", len(word)) + word.encode() for word in words)
    return listed + (_CODES + _VALUES).encode()


DICTIONARY = _dictionary()


class BadHeaders(Exception):
    """A header block that breaks the format or a limit; the zlib state is lost, so the connection must end."""


class Compressor:
    """The sending side: 9 KiB of memory, because what a server sends are empty replies."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(1, zlib.DEFLATED, 11, 1, zdict=DICTIONARY)

    def block(self, headers: Mapping[str, str]) -> bytes:
        """Return the compressed block; names are lower-cased as the draft demands."""
        plain = [struct.pack(">I", len(headers))]
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                plain += [struct.pack(">I", len(text)), text]
        return self._zlib.compress(b"".join(plain)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class Decompressor:
    """The receiving side."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def headers(self, block: bytes) -> dict[str, str]:
        """Return the pairs of one block, names in lower case; values of several strings keep their NULs."""
        try:
            plain = self._zlib.decompress(block, BLOCK_LIMIT)
        except zlib.error as error:
            raise BadHeaders(f"header block does not decompress: {error}") from error
        if len(plain) >= BLOCK_LIMIT or self._zlib.eof:
            raise BadHeaders(f"header block reaches {BLOCK_LIMIT} bytes or ends the compression")
        return _parse(plain)


def _parse(plain: bytes) -> dict[str, str]:
    count, offset = _number(plain, 0)
    if count > PAIRS_LIMIT:
        raise BadHeaders(f"{count} headers, at most {PAIRS_LIMIT} are allowed")
    headers: dict[str, str] = {}
    for _ in range(count):
        name, offset = _text(plain, offset)
        value, offset = _text(plain, offset)
        headers[name.lower()] = value
    return headers


def _number(plain: bytes, offset: int) -> tuple[int, int]:
    if len(plain) < offset + 4:
        raise BadHeaders("header block ends within a length")
    return int.from_bytes(plain[offset : offset + 4], "big"), offset + 4


def _text(plain: bytes, offset: int) -> tuple[str, int]:
    length, offset = _number(plain, offset)
    if length > len(plain) - offset:
        raise BadHeaders("header block ends within a string")
    return plain[offset : offset + length].decode("latin-1"), offset + length
