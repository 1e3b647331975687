"""OpenPGP messages as Go's first library wrote them, golang.org/x/crypto/openpgp: that of skopeo in Debian 12.

It cuts packets into parts smaller than the 512 bytes that RFC 9580 (4.2.1.4) asks of a first part, inside the
encryption as well, and Sequoia takes no such message. It encrypts for RSA keys (and ElGamal), with AES and a SHA-1 over
the content, and compresses nothing: that much is read here, in the process of pgp_module.py alone.
"""

import hashlib
import hmac

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from pysequoia.packet import PacketPile, Tag

from decryptor import costs

_SESSION_KEY, _LITERAL, _SEALED = 1, 11, 18
_RSA = (1, 2)
#: Bytes of a key by OpenPGP's number of the cipher: AES of three sizes.
_KEY_BYTES = {7: 16, 8: 24, 9: 32}
_HASHES = {2: "sha1", 8: "sha256", 9: "sha384", 10: "sha512", 11: "sha224"}
_BLOCK = 16
_DIGEST_HEAD = b"\xd3\x14"


def opened(ring: bytes, password: bytes | None, message: bytes) -> bytes | None:
    """Return the payload of a message for an RSA key of the ring, else None or an error of whatever kind."""
    parts = _packets(message)
    sealed = [body for tag, body in parts if tag == _SEALED]
    if len(sealed) != 1 or sealed[0][:1] != b"\x01":
        return None
    keys = [each for each in PacketPile.from_bytes(ring) if each.tag in (Tag.SecretKey, Tag.SecretSubkey)]
    for tag, body in parts:
        # Version 3, the key's number, and RSA.
        if tag != _SESSION_KEY or body[0] != 3 or body[9] not in _RSA:
            continue
        for key in keys:
            if str(key.key_id).lower() == body[1:9].hex() and key.body and key.body[5] in _RSA:
                session = _session(_private(key.body, password), _number(body[10:])[0])
                if session and (payload := _unsealed(session, sealed[0][1:])):
                    return payload
    return None


def _packets(data: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each packet in the newer format, parts of any size put together."""
    found, at = [], 0
    while at < len(data):
        head, at, body = data[at], at + 1, b""
        if head & 0xC0 != 0xC0:
            raise ValueError("an older packet format")
        more = True
        while more:
            size, at, more = _length(data, at)
            if at + size > len(data):
                raise ValueError("ends early")
            body, at = body + data[at : at + size], at + size
        found.append((head & 0x3F, body))
    return found


def _length(data: bytes, at: int) -> tuple[int, int, bool]:
    """Return a length, where it ends, and whether another one follows its bytes."""
    first = data[at]
    if first < 192:
        return first, at + 1, False
    if first < 224:
        return (first - 192 << 8) + data[at + 1] + 192, at + 2, False
    if first < 255:
        return 1 << (first & 0x1F), at + 1, True
    return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5, False


def _number(data: bytes) -> tuple[int, bytes]:
    """Return a multiprecision integer and what follows it."""
    end = 2 + (int.from_bytes(data[:2], "big") + 7) // 8
    return int.from_bytes(data[2:end], "big"), data[end:]


def _private(body: bytes, password: bytes | None) -> rsa.RSAPrivateKey:
    n, rest = _number(body[6:])
    e, _ = _number(rest)
    start = costs.after_material(body)
    secret = body[start + 1 :] if not body[start] else _opened_key(body[start:], password or b"")
    d, rest = _number(secret)
    p, rest = _number(rest)
    q, _ = _number(rest)
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, n)
    )
    return numbers.private_key()


def _opened_key(data: bytes, password: bytes) -> bytes:
    """Return the numbers of a version 4 key under a password, as gpg protects it: AES, and a SHA-1 over them."""
    usage, cipher, kind, digest = data[:4]
    if usage != 254 or cipher not in _KEY_BYTES or kind not in (0, 1, 3) or digest not in _HASHES:
        raise ValueError("a protection that is not read here")
    at = 4
    salt = data[at : at + 8] if kind else b""
    at += len(salt)
    count = len(salt) + len(password)
    if kind == 3:
        count, at = max(count, (16 + (data[at] & 15)) << ((data[at] >> 4) + 6)), at + 1
    key = _stretched(salt + password, count, _HASHES[digest], _KEY_BYTES[cipher])
    plain = _cfb(key, data[at : at + _BLOCK], data[at + _BLOCK :])
    if not hmac.compare_digest(hashlib.sha1(plain[:-20]).digest(), plain[-20:]):  # noqa: S324 # the format's
        raise ValueError("another password")
    return plain[:-20]


def _stretched(seed: bytes, count: int, digest: str, size: int) -> bytes:
    """Return a key out of `count` bytes of the seed over and over (RFC 9580, 3.7.1.3)."""
    key, block = b"", seed * (65536 // max(len(seed), 1) + 1)
    block = block[: len(block) // max(len(seed), 1) * len(seed)]
    while len(key) < size:
        # Each further part is hashed with one more zero byte before it.
        hashed, left = hashlib.new(digest, bytes(len(key) // hashlib.new(digest).digest_size)), count
        while left > 0 and block:
            hashed.update(block[:left])
            left -= len(block)
        key += hashed.digest()
    return key[:size]


def _session(key: rsa.RSAPrivateKey, wrapped: int) -> bytes | None:
    """Return the AES key of a message; None if what was wrapped is none."""
    size = (key.key_size + 7) // 8
    data = key.decrypt(wrapped.to_bytes(size, "big"), padding.PKCS1v15())
    session, told = data[1:-2], int.from_bytes(data[-2:], "big")
    fitting = len(data) > 3 and _KEY_BYTES.get(data[0]) == len(session)
    return session if fitting and sum(session) % 65536 == told else None


def _unsealed(session: bytes, cipher: bytes) -> bytes | None:
    """Return the literal data of an encrypted packet once its digest is right."""
    plain = _cfb(session, bytes(_BLOCK), cipher)
    content, head, told = plain[:-22], plain[-22:-20], plain[-20:]
    right = hmac.compare_digest(hashlib.sha1(content + head).digest(), told)  # noqa: S324 # the format's
    if head != _DIGEST_HEAD or not right:
        return None
    # A random block comes first, with its last two bytes again.
    inside = _packets(content[_BLOCK + 2 :])
    if len(inside) != 1 or inside[0][0] != _LITERAL:
        return None
    body = inside[0][1]
    return body[2 + body[1] + 4 :]


def _cfb(key: bytes, start: bytes, data: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES(key), CFB(start)).decryptor()
    return decryptor.update(data) + decryptor.finalize()
