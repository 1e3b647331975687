"""Keys made once a run, in every format that a key directory may hold."""

import base64
import datetime
import json
from typing import Any

import pysequoia
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

ENCODING, FORMAT = serialization.Encoding, serialization.PrivateFormat
PLAIN = serialization.NoEncryption()
PASSWORD = serialization.BestAvailableEncryption(b"secret")


def b64(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, primes: bool = True) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        public = numbers.public_numbers
        fields: dict[str, Any] = {"kty": "RSA", "n": b64(public.n), "e": b64(public.e), "d": b64(numbers.d)}
        return {**fields, "p": b64(numbers.p), "q": b64(numbers.q)} if primes else fields
    curve = key.private_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": b64(curve.public_numbers.x),
        "y": b64(curve.public_numbers.y),
        "d": b64(curve.private_value),
    }


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def pgp_key() -> pysequoia.Tsk:
    return pysequoia.Tsk.generate(user_id="Node <node@example.com>")


@pytest.fixture(scope="session")
def certificate(rsa_key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, rsa_key.public_key(), 1, begin, begin + datetime.timedelta(days=1))
    return builder.sign(rsa_key, hashes.SHA256())


@pytest.fixture(scope="session")
def formats(
    rsa_key: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    pgp_key: pysequoia.Tsk,
) -> dict[str, bytes]:
    """One file's bytes by format."""
    pem, der = ENCODING.PEM, ENCODING.DER
    odd = ed25519.Ed25519PrivateKey.generate()
    return {
        "pkcs8.pem": rsa_key.private_bytes(pem, FORMAT.PKCS8, PLAIN),
        "pkcs8.der": rsa_key.private_bytes(der, FORMAT.PKCS8, PLAIN),
        "pkcs1.pem": rsa_key.private_bytes(pem, FORMAT.TraditionalOpenSSL, PLAIN),
        "pkcs1.der": rsa_key.private_bytes(der, FORMAT.TraditionalOpenSSL, PLAIN),
        "sec1.pem": ec_key.private_bytes(pem, FORMAT.TraditionalOpenSSL, PLAIN),
        "sec1.der": ec_key.private_bytes(der, FORMAT.TraditionalOpenSSL, PLAIN),
        "ec-pkcs8.pem": ec_key.private_bytes(pem, FORMAT.PKCS8, PLAIN),
        "encrypted-pkcs8.pem": rsa_key.private_bytes(pem, FORMAT.PKCS8, PASSWORD),
        "encrypted-pkcs8.der": rsa_key.private_bytes(der, FORMAT.PKCS8, PASSWORD),
        "encrypted-legacy.pem": rsa_key.private_bytes(pem, FORMAT.TraditionalOpenSSL, PASSWORD),
        "ed25519.pem": odd.private_bytes(pem, FORMAT.PKCS8, PLAIN),
        "openssh.pem": rsa_key.private_bytes(pem, FORMAT.OpenSSH, PLAIN),
        "public.pem": rsa_key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
        "cert.pem": certificate.public_bytes(pem),
        "cert.der": certificate.public_bytes(der),
        "chain-and-key.pem": certificate.public_bytes(pem) + rsa_key.private_bytes(pem, FORMAT.PKCS8, PLAIN),
        "rsa.jwk": json.dumps(jwk(rsa_key)).encode(),
        "rsa-without-primes.jwk": json.dumps(jwk(rsa_key, primes=False)).encode(),
        "ec.jwk": json.dumps(jwk(ec_key)).encode(),
        "public.jwk": json.dumps({**jwk(ec_key), "d": None} | {"d": ""}).encode(),
        "ring.gpg": bytes(pgp_key),
        "ring.asc": pysequoia.armor(bytes(pgp_key), pysequoia.ArmorKind.SecretKey).encode(),
        "torn.gpg": b"\x95\x03\xbe" + b"\x04" * 40,
        "torn-new.gpg": b"\xc5\xc0\x10" + b"\x04" * 40,
        "token.yaml": b"pkcs11:\n  uri: pkcs11:token=x;object=node?pin-value=1234\nmodule:\n  env: {}\n",
        "bad-token.yaml": b"pkcs11:\n  uri: pkcs11:token=x?pin-value=1234\n",
        "junk": b"hello",
        "torn.pem": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    }
