"""What it would cost to try a password on a key, read before it is tried: nothing else runs meanwhile.

A key file says itself how much work its password takes: PBKDF2's rounds (RFC 8018), scrypt's and Argon2's memory (RFC
7914, 9106). The bounds are some times what OWASP asks of stored passwords, and take seconds at most.
"""

import base64
import binascii
import re
from collections.abc import Iterable

from decryptor.schemes import der
from decryptor.schemes.der import Element, Malformed

__all__ = ["Malformed", "TooCostly", "after_material", "check_openpgp", "check_pkcs8", "decoded"]

#: Rounds of PBKDF2 and of PKCS#12's derivation.
ROUNDS_LIMIT = 2_000_000
#: Bytes that scrypt or Argon2 may hold at once, and that they may go through; the latter also for OpenPGP's hashing.
MEMORY_LIMIT, WORK_LIMIT = 256 << 20, 1 << 30

_PBES2, _PBKDF2, _SCRYPT = (
    der.oid("1.2.840.113549.1.5.13"),
    der.oid("1.2.840.113549.1.5.12"),
    der.oid("1.3.6.1.4.1.11591.4.11"),
)
_BODY = re.compile(rb"-----BEGIN [^\n]*-----(.*)-----END ", re.DOTALL)

#: OpenPGP's public material ahead of the protected part (RFC 9580, 5.5.5): i is an object identifier or another field
#: behind its length, m a number, and a figure so many bytes.
_MATERIAL: dict[int, str | int] = {
    1: "mm", 2: "mm", 3: "mm", 16: "mmm", 17: "mmmm", 18: "imi", 19: "im", 22: "im", 25: 32, 26: 56, 27: 32, 28: 57,
    35: 32 + 1184,
}  # fmt: skip
_AEAD, _CFB, _CFB_CHECKSUM = 253, 254, 255
_ITERATED, _ARGON2 = 3, 4


class TooCostly(ValueError):
    """A password that would take more work than is done for one; the text says how much."""


def decoded(pem: bytes) -> bytes:
    """Return the bytes of a PEM block without headers; Malformed if it is none."""
    try:
        found = _BODY.search(pem)
        return base64.b64decode(b"".join(found.group(1).split()) if found else b"", validate=True)
    except binascii.Error:
        raise Malformed("not base64") from None


def check_pkcs8(data: bytes) -> None:
    """Raise TooCostly for an EncryptedPrivateKeyInfo beyond the bounds, Malformed for what is none."""
    algorithm = der.read(data)[0].part(0, der.SEQUENCE)
    parameters = algorithm.part(1, der.SEQUENCE)
    if algorithm.part(0, der.OBJECT).raw != _PBES2:
        # PBES1 and PKCS#12: salt and rounds.
        _check_rounds(parameters.part(1, der.INTEGER))
        return
    derivation = parameters.part(0, der.SEQUENCE)
    kind, settings = derivation.part(0, der.OBJECT).raw, derivation.part(1, der.SEQUENCE)
    if kind == _PBKDF2:
        _check_rounds(settings.part(1, der.INTEGER))
    elif kind == _SCRYPT:
        n, r, p = (settings.part(index, der.INTEGER).integer for index in (1, 2, 3))
        # The p blocks that it begins with are made and held at once, beside the memory that one of them is mixed in.
        _check_memory(f"scrypt with N={n}, r={r}, p={p}", 128 * r * (n + p), 128 * r * (n + 1) * p)
    else:
        raise Malformed("an unknown key derivation")


def check_openpgp(bodies: Iterable[bytes]) -> None:
    """Raise TooCostly for the secret key packets of one key beyond the bounds, Malformed for what are none."""
    hashed = 0
    for body in bodies:
        try:
            hashed += _of_packet(body)
        except IndexError:
            raise Malformed("a secret key packet that ends early") from None
    if hashed > WORK_LIMIT:
        raise TooCostly(f"is protected by hashing {hashed} bytes, and at most {WORK_LIMIT} are hashed for a password")


def _check_rounds(rounds: Element) -> None:
    if rounds.integer > ROUNDS_LIMIT:
        raise TooCostly(
            f"is protected by {rounds.integer} rounds of key derivation, and at most {ROUNDS_LIMIT} are done for a "
            "password: openssl pkcs8 -topk8 -iter writes it anew with fewer"
        )


def _check_memory(what: str, memory: int, work: int) -> None:
    if memory > MEMORY_LIMIT or work > WORK_LIMIT:
        raise TooCostly(
            f"is protected by {what}: {memory} bytes of memory and {work} to go through, and for a password there are "
            f"{MEMORY_LIMIT} and {WORK_LIMIT}"
        )


def _of_packet(body: bytes) -> int:
    """Return how many bytes are hashed, or gone through by Argon2, for the password of one packet."""
    version, at = body[0], after_material(body)
    usage, at = body[at], at + 1
    if usage not in (_AEAD, _CFB, _CFB_CHECKSUM):
        return 0  # open, or by the oldest way, which hashes the password once
    # The cipher and AEAD's mode; version 6 puts lengths before these and before what follows.
    at += (2 if usage == _AEAD else 1) + (2 if version == 6 else 0)
    if body[at] == _ARGON2:
        passes, lanes, exponent = body[at + 17], body[at + 18], body[at + 19]
        memory = 1024 << exponent
        _check_memory(f"Argon2 with t={passes}, p={lanes}, m={exponent}", memory, memory * passes)
        return memory * passes
    if body[at] == _ITERATED:
        count = body[at + 10]
        return (16 + (count & 15)) << ((count >> 4) + 6)
    return 0


def after_material(body: bytes) -> int:
    """Return where the protected part of a secret key packet begins; Malformed or IndexError if it is none."""
    at = 6
    if body[0] == 6:
        return at + 4 + int.from_bytes(body[6:10], "big")
    material = _MATERIAL.get(body[5])
    if material is None:
        raise Malformed("an unknown algorithm")
    if isinstance(material, int):
        return at + material
    for kind in material:
        at += 2 + (int.from_bytes(body[at : at + 2], "big") + 7) // 8 if kind == "m" else 1 + body[at]
    return at
