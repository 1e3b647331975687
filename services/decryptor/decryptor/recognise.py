"""What a key file holds: the formats ocicrypt knows, told apart by their bytes.

Every text here is our own: what a parsing library says of a key might quote it.
"""

import base64
import binascii
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from bulkhead.errors import BulkheadError
from decryptor import costs
from decryptor.complaints import NEEDS_PASSWORD, WRONG_PASSWORD

PRIVATE_KEY, CERTIFICATE, JWK, PGP, PKCS11 = "private-key", "certificate", "jwk", "pgp", "pkcs11"

#: Bits of an RSA key whose primes are looked for if it does not state them: in vain that takes 3 s, at six times the
#: size minutes, for which nothing else runs.
_FACTORED_BITS = 8192
#: PEM blocks looked at in one file.
BLOCK_LIMIT = 64

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_PEM_MARK = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,64})-----")
_PKCS11 = re.compile(rb"^pkcs11:[ \t]*(?:#.*)?\r?$", re.MULTILINE)
_PKCS11_URI = re.compile(rb"^[ \t]+uri:", re.MULTILINE)
_UNREADABLE = "a private key that cannot be parsed"
_CURVES: dict[str, type[ec.EllipticCurve]] = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}


@dataclass(frozen=True)
class Key:
    """What was found. error says why it cannot be used; nothing private shows in repr."""

    kind: str = ""
    fingerprint: str = ""
    error: str = ""
    private: PrivateKey | None = field(default=None, repr=False, compare=False)
    certificate: x509.Certificate | None = field(default=None, repr=False, compare=False)
    #: An OpenPGP key with its secrets open (decryptor.schemes.pgp), or a PKCS#11 key file (decryptor.schemes.pkcs11).
    other: object = field(default=None, repr=False, compare=False)
    #: What a scheme's library has made of the key, kept as long as the key is: checking RSA's numbers takes 33 ms at
    #: 2048 bits and 280 ms at 4096.
    made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    #: More usable keys of the same file: certificates beside a key, further keys of a ring.
    also: tuple["Key", ...] = ()


def recognise(data: bytes, password: bytes | None = None) -> Key:
    """Return what the bytes are, protected ones opened with the password; whatever they are, it raises nothing."""
    if (found := _PKCS11.search(data)) and _PKCS11_URI.search(data, found.end()):
        return _pkcs11(data)
    if blocks := _pem_blocks(data):
        return _best([_pem_block(label, block, password) for label, block in blocks])
    if data.lstrip()[:1] == b"{":
        return _jwk(data)
    if _is_secret_ring(data):
        return _pgp(data, password)
    if data[:1] == b"\x30":
        return _der(data, password)
    return Key(error="not a key in a known format (PEM, DER, JWK, certificate, OpenPGP secret ring, pkcs11 YAML)")


def fingerprint(public: PublicKeyTypes) -> str:
    """Return the SHA-256 over the SubjectPublicKeyInfo, in hex: the same for a key and its certificate."""
    encoded = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def _best(keys: list[Key]) -> Key:
    """Of the blocks of one file, the private key speaks for it: chains and parameters may stand beside it."""
    order = (PRIVATE_KEY, PGP, CERTIFICATE)
    first, *rest = sorted(keys, key=lambda key: order.index(key.kind) if key.kind in order else len(order))
    return dataclasses.replace(first, also=(*first.also, *(key for key in rest if not key.error)))


def _pem_blocks(data: bytes) -> list[tuple[str, bytes]]:
    """Return label and bytes of each block: a BEGIN whose next mark is the END of the same label."""
    marks = list(_PEM_MARK.finditer(data))
    return [
        (begin.group(2).decode(), data[begin.start() : end.end()])
        for begin, end in itertools.pairwise(marks)
        if begin.group(1) == b"BEGIN" and end.group(1) == b"END" and begin.group(2) == end.group(2)
    ][:BLOCK_LIMIT]


def _pem_block(label: str, block: bytes, password: bytes | None) -> Key:
    if label in ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"):
        return _certificate(block, pem=True)
    if label == "PGP PRIVATE KEY BLOCK":
        return _pgp(block, password)
    if label == "OPENSSH PRIVATE KEY":
        return Key(PRIVATE_KEY, error="an OpenSSH key; ssh-keygen -p -m PKCS8 converts it")
    if label == "ENCRYPTED PRIVATE KEY":
        return _encrypted(block, password)
    if label.endswith("PRIVATE KEY"):
        return _private(block, password, pem=True)
    return Key(error=f"a PEM block {label!r} is no key to decrypt with")


def _encrypted(block: bytes, password: bytes | None) -> Key:
    try:
        # One reading of the block serves for looking at it and for opening it.
        data = costs.decoded(block)
    except costs.Malformed:
        return Key(PRIVATE_KEY, error=_UNREADABLE)
    return dataclasses.replace(_private(data, password, pem=False), kind=PRIVATE_KEY)


def _private(data: bytes, password: bytes | None, *, pem: bool) -> Key:
    load = serialization.load_pem_private_key if pem else serialization.load_der_private_key
    try:
        key = load(data, None)
    except TypeError:
        # What the library raises for a protected key and no password.
        return _protected(data, password, load, pem=pem) if password else Key(PRIVATE_KEY, error=NEEDS_PASSWORD)
    except Exception:  # a parser may raise anything at all on hostile bytes
        return Key(PRIVATE_KEY if pem else "", error=_UNREADABLE)
    return _usable(PRIVATE_KEY, key)


def _protected(data: bytes, password: bytes, load: Callable[[bytes, bytes], object], *, pem: bool) -> Key:
    try:
        # What PEM itself protects takes one round.
        if not pem:
            costs.check_pkcs8(data)
        return _usable(PRIVATE_KEY, load(data, password))
    except costs.TooCostly as error:
        return Key(PRIVATE_KEY, error=str(error))
    except costs.Malformed:
        return Key(PRIVATE_KEY, error=_UNREADABLE)
    except Exception:  # as above; what a wrong password makes of the bytes may be anything
        return Key(PRIVATE_KEY, error=WRONG_PASSWORD)


def _usable(kind: str, key: object) -> Key:
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        return Key(kind, error=f"a key of type {type(key).__name__}; RSA and EC keys unwrap layers")
    return Key(kind, fingerprint(key.public_key()), private=key)


def _certificate(data: bytes, *, pem: bool) -> Key:
    load = x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate
    try:
        found = load(data)
        return Key(CERTIFICATE, fingerprint(found.public_key()), certificate=found)
    except Exception:  # as above
        return Key(CERTIFICATE if pem else "", error="a certificate that cannot be parsed")


def _der(data: bytes, password: bytes | None) -> Key:
    key = _private(data, password, pem=False)
    if not key.kind:
        key = _certificate(data, pem=False)
    return key if key.kind else Key(error="DER that is neither a private key nor a certificate")


def _pgp(data: bytes, password: bytes | None) -> Key:
    # Where needed: a node without OpenPGP keys pays nothing for them.
    from decryptor.schemes import pgp

    first, *rest = [
        Key(PGP, secret.fingerprint, secret.error, other=secret) for secret in pgp.secrets(data, password)
    ] or [Key(PGP, error="an OpenPGP ring without a secret key that can be parsed")]
    return dataclasses.replace(first, also=tuple(rest))


def _pkcs11(data: bytes) -> Key:
    from decryptor.schemes import pkcs11

    try:
        found = pkcs11.key_file(data)
        return Key(PKCS11, found.name, other=found)
    except BulkheadError as error:
        return Key(PKCS11, error=str(error))


def _is_secret_ring(data: bytes) -> bool:
    """OpenPGP (RFC 9580, 4.2): bit 7 is always set, and the packet type of a secret key is 5."""
    if not data or not data[0] & 0x80:
        return False
    return (data[0] & 0x3F if data[0] & 0x40 else data[0] >> 2 & 0x0F) == 5


def _jwk(data: bytes) -> Key:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return Key(error="JSON that cannot be parsed")
    if not isinstance(fields, dict) or "kty" not in fields:
        return Key(error="JSON that is no JSON Web Key (no kty)")
    if fields.get("kty") not in ("RSA", "EC"):
        return Key(JWK, error="a JSON Web Key of another type than RSA and EC")
    if "d" not in fields:
        return Key(JWK, error="a public JSON Web Key")
    try:
        return _usable(JWK, _jwk_rsa(fields) if fields["kty"] == "RSA" else _jwk_ec(fields))
    except Exception:  # as above
        return Key(JWK, error="a JSON Web Key whose numbers do not fit together")


def _jwk_rsa(fields: dict[str, Any]) -> PrivateKey:
    n, e, d = (_number(fields[name]) for name in ("n", "e", "d"))
    if all(name in fields for name in ("p", "q")):
        p, q = _number(fields["p"]), _number(fields["q"])
    elif n.bit_length() <= _FACTORED_BITS and max(e, d) < n:
        p, q = rsa.rsa_recover_prime_factors(n, e, d)
    else:
        # Exponents beyond the modulus would multiply the work as its own size does.
        raise ValueError("too large to look for its primes")
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, n)
    )
    return numbers.private_key()


def _jwk_ec(fields: dict[str, Any]) -> PrivateKey:
    public = ec.EllipticCurvePublicNumbers(_number(fields["x"]), _number(fields["y"]), _CURVES[str(fields["crv"])]())
    return ec.EllipticCurvePrivateNumbers(_number(fields["d"]), public).private_key()


def _number(text: object) -> int:
    if not isinstance(text, str) or len(text) > 8192:
        raise ValueError("not a base64url number")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    return int.from_bytes(raw, "big")
