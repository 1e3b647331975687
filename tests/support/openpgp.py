"""OpenPGP messages put together by hand, for contents and forms that no program writes."""

import hashlib
import os
import zlib
from collections.abc import Iterable

import pysequoia
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from pysequoia.packet import PacketPile, Tag


def packet(tag: int, body: bytes) -> bytes:
    """Return a packet (RFC 9580, 4.2)."""
    return bytes((0xC0 | tag, 255)) + len(body).to_bytes(4, "big") + body


def parted(tag: int, body: bytes) -> bytes:
    """Return a packet in parts of powers of two down to one byte, as golang.org/x/crypto/openpgp writes it."""
    made, at = bytes((0xC0 | tag,)), 0
    for power in range(min(len(body).bit_length() - 1, 30), -1, -1):
        if len(body) & 1 << power:
            made, at = made + bytes((224 + power,)) + body[at : at + (1 << power)], at + (1 << power)
    return made + b"\0"


def squeezed(pieces: Iterable[bytes]) -> bytes:
    """Return a packet of compressed data."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packet(8, b"\x01" + b"".join(map(deflate.compress, pieces)) + deflate.flush())


def literal(data: bytes) -> bytes:
    """Return the content of a literal packet."""
    return b"b\0" + bytes(4) + data


def message(content: bytes, ring: bytes) -> bytes:
    """Return packets encrypted for the RSA key that a public ring's messages are for (RFC 9580, 5.1 and 5.13.1)."""
    sample = pysequoia.encrypt(b"x", recipients=[pysequoia.Cert.from_bytes(ring)], armor=False)
    named = next(each.body or b"" for each in PacketPile.from_bytes(sample) if each.tag == Tag.PKESK)
    # Version 6 names a key of version 4 by its whole fingerprint, of which version 3 has the end.
    ident = named[15:23] if named[0] == 6 else named[1:9]
    public = next(each for each in PacketPile.from_bytes(ring) if str(each.key_id).lower() == ident.hex())
    n, rest = _number((public.body or b"")[6:])
    e, _ = _number(rest)
    session = os.urandom(32)
    given = bytes((9,)) + session + (sum(session) % 65536).to_bytes(2, "big")
    wrapped = rsa.RSAPublicNumbers(e, n).public_key().encrypt(given, padding.PKCS1v15())
    mpi = int.from_bytes(wrapped, "big").bit_length().to_bytes(2, "big") + wrapped.lstrip(b"\0")
    start = os.urandom(16)
    inside = start + start[-2:] + content + b"\xd3\x14"
    inside += hashlib.sha1(inside).digest()
    cipher = Cipher(algorithms.AES(session), CFB(bytes(16))).encryptor()
    sealed = b"\x01" + cipher.update(inside)
    return packet(1, b"\x03" + ident + b"\x01" + mpi) + packet(18, sealed)


def _number(data: bytes) -> tuple[int, bytes]:
    size = (int.from_bytes(data[:2], "big") + 7) // 8
    return int.from_bytes(data[2 : 2 + size], "big"), data[2 + size :]
