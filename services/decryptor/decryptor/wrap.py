"""Wrapping a layer's private options for recipients, into the annotations that ocicrypt reads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bulkhead.errors import InvalidArgument
from bulkhead.proto import keys_pb2
from decryptor import options
from decryptor.deadline import Deadline
from decryptor.tools import Tools

RECIPIENTS_LIMIT = 256
SCHEMES = ("jwe", "pkcs7", "pgp", "pkcs11", "provider")

_PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def annotations(
    payload: bytes,
    recipients: Iterable[keys_pb2.Recipient],
    tools: Tools,
    deadline: Deadline,
    tokens: Sequence[object] | None = (),
) -> dict[str, str]:
    """Return the annotations with the wrapped payload, recipients of one scheme sharing one copy.

    InvalidArgument names the recipient that cannot be one. `tokens` are the key files of tokens that may be named; None
    trusts every one.
    """
    by_scheme: dict[str, list[keys_pb2.Recipient]] = {}
    count = 0
    for count, each in enumerate(recipients, 1):
        if each.scheme not in SCHEMES:
            raise InvalidArgument(f"recipient {count}: scheme {each.scheme!a}, expected one of {', '.join(SCHEMES)}")
        by_scheme.setdefault(each.scheme, []).append(each)
    if not 1 <= count <= RECIPIENTS_LIMIT:
        raise InvalidArgument(f"{count} recipients, expected 1 to {RECIPIENTS_LIMIT}")
    found: dict[str, str] = {}
    for scheme, group in by_scheme.items():
        if scheme == "provider":
            for each in group:
                blob = tools.tell(each.name, each.key, payload, deadline)
                found[f"{options.WRAPPED}provider.{each.name}"] = options.encode(blob)
        else:
            found[options.WRAPPED + scheme] = options.encode(_wrap(scheme, payload, group, tools, deadline, tokens))
    return found


def merged(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations of a layer with more recipients: further copies follow after a comma."""
    kept = {name: value for name, value in old.items() if name.startswith(options.PREFIX)}
    return kept | {name: f"{kept[name]},{value}" if kept.get(name) else value for name, value in new.items()}


def _wrap(
    scheme: str,
    payload: bytes,
    group: list[keys_pb2.Recipient],
    tools: Tools,
    deadline: Deadline,
    tokens: Sequence[object] | None,
) -> bytes:
    if scheme == "jwe":
        from decryptor.schemes import jwe

        return jwe.wrap(payload, [public_key(each.key, "jwe") for each in group])
    if scheme == "pkcs7":
        from decryptor.schemes import pkcs7

        return pkcs7.wrap(payload, [_certificate(each.key) for each in group])
    if scheme == "pgp":
        from decryptor.schemes import pgp

        return pgp.wrap(payload, [(each.key, each.name) for each in group])
    return tools.wrap_for_tokens([_token_key(each.key, tokens) for each in group], payload, deadline)


def public_key(data: bytes, scheme: str) -> tuple[_PublicKey, str]:
    """Return a public key out of PEM, DER or JWK, and the algorithm that a JWK names or ""."""
    try:
        if data.lstrip()[:1] == b"{":
            return _jwk(data)
        load = serialization.load_pem_public_key if b"-----BEGIN" in data else serialization.load_der_public_key
        found = load(data)
    except Exception:  # a parser may raise anything
        raise InvalidArgument(f"recipient {scheme}: not a public key in PEM, DER or JWK") from None
    if not isinstance(found, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise InvalidArgument(f"recipient {scheme}: a key of type {type(found).__name__}, expected RSA or EC")
    return found, ""


def _jwk(data: bytes) -> tuple[_PublicKey, str]:
    from jwcrypto import jwk

    from decryptor.schemes.jwe import KEY_ALGORITHMS

    key = jwk.JWK.from_json(data.decode())
    algorithm = str(key.get("alg") or "")
    if algorithm and algorithm not in KEY_ALGORITHMS:
        raise ValueError(algorithm)
    found: Any = serialization.load_pem_public_key(key.export_to_pem())
    if not isinstance(found, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise TypeError("neither RSA nor EC")
    return found, algorithm


def _certificate(data: bytes) -> x509.Certificate:
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except Exception:
        raise InvalidArgument("recipient pkcs7: not an X.509 certificate in PEM or DER") from None


def _token_key(data: bytes, tokens: Sequence[object] | None) -> object:
    from decryptor.schemes import pkcs11

    if b"pkcs11:" in data and b"-----BEGIN" not in data:
        file = pkcs11.key_file(data)
        # A variable such as LD_PRELOAD would run the caller's code as the decryptor's user, a PIN's file may be any
        # that this user can read, the node's private keys among them, and some wrong PINs lock a token for everybody.
        if tokens is not None and file not in tokens:
            raise InvalidArgument(
                "recipient pkcs11: a token's key file is root's to give: name the token's public key, or a key file "
                "that the decryptor has"
            )
        return file
    key, _ = public_key(data, "pkcs11")
    if not isinstance(key, rsa.RSAPublicKey):
        raise InvalidArgument("recipient pkcs11: tokens unwrap with RSA alone")
    return key
