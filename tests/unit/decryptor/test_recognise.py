"""Key files: every format is told apart, and what cannot be used says why without quoting itself."""

import base64
import json
import time

import pysequoia
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from decryptor import complaints, recognise


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pkcs8.pem", "private-key"),
        ("pkcs8.der", "private-key"),
        ("pkcs1.pem", "private-key"),
        ("pkcs1.der", "private-key"),
        ("cert.pem", "certificate"),
        ("cert.der", "certificate"),
        ("chain-and-key.pem", "private-key"),
        ("rsa.jwk", "jwk"),
        ("rsa-without-primes.jwk", "jwk"),
    ],
)
def test_formats_of_one_rsa_key(formats: dict[str, bytes], rsa_key: rsa.RSAPrivateKey, name: str, kind: str) -> None:
    """Whatever the format, key and certificate have the fingerprint of their public key."""
    key = recognise.recognise(formats[name])

    assert (key.kind, key.error) == (kind, "")
    assert key.fingerprint == recognise.fingerprint(rsa_key.public_key())


@pytest.mark.parametrize("name", ["sec1.pem", "sec1.der", "ec-pkcs8.pem", "ec.jwk"])
def test_formats_of_one_ec_key(formats: dict[str, bytes], ec_key: ec.EllipticCurvePrivateKey, name: str) -> None:
    """EC keys load from SEC1, PKCS#8 and JWK."""
    key = recognise.recognise(formats[name])

    assert not key.error
    assert key.fingerprint == recognise.fingerprint(ec_key.public_key())


@pytest.mark.parametrize("name", ["ring.gpg", "ring.asc"])
def test_secret_rings_are_opened(formats: dict[str, bytes], pgp_key: pysequoia.Tsk, name: str) -> None:
    """OpenPGP secret rings, binary and armoured, are known by the key's own fingerprint."""
    key = recognise.recognise(formats[name])

    assert (key.kind, key.error, key.fingerprint) == ("pgp", "", pgp_key.extract_certificate().fingerprint)


@pytest.mark.parametrize("name", ["torn.gpg", "torn-new.gpg"])
def test_a_torn_ring_says_so(formats: dict[str, bytes], name: str) -> None:
    """What begins like a secret ring and is none is an unusable OpenPGP key."""
    key = recognise.recognise(formats[name])

    assert (key.kind, key.error) == ("pgp", "an OpenPGP ring without a secret key that can be parsed")


def test_a_token_is_named_by_its_uri(formats: dict[str, bytes]) -> None:
    """A pkcs11 YAML is known by the URI without PIN and module, and shows neither."""
    key = recognise.recognise(formats["token.yaml"])

    assert (key.kind, key.fingerprint, key.error) == ("pkcs11", "pkcs11:object=node;token=x", "")
    assert "1234" not in repr((key, key.other))


def test_a_token_without_an_object_says_so(formats: dict[str, bytes]) -> None:
    """A pkcs11 YAML whose URI names no key cannot be used, and the error quotes nothing of it."""
    key = recognise.recognise(formats["bad-token.yaml"])

    assert "neither object nor id" in key.error
    assert "1234" not in key.error


@pytest.mark.parametrize("name", ["encrypted-pkcs8.pem", "encrypted-pkcs8.der", "encrypted-legacy.pem"])
def test_a_key_with_password_says_so(formats: dict[str, bytes], name: str) -> None:
    """A password-protected key counts as a key that cannot be used, and names the reason."""
    key = recognise.recognise(formats[name])

    assert (key.kind, key.error, key.private) == ("private-key", complaints.NEEDS_PASSWORD, None)


@pytest.mark.parametrize("name", ["encrypted-pkcs8.pem", "encrypted-pkcs8.der", "encrypted-legacy.pem"])
def test_a_password_opens_its_key(formats: dict[str, bytes], rsa_key: rsa.RSAPrivateKey, name: str) -> None:
    """With its password a protected key is a key like any other; with another it says that this is not the one."""
    right = recognise.recognise(formats[name], b"secret")
    wrong = recognise.recognise(formats[name], b"guess")

    assert (right.error, right.fingerprint) == ("", recognise.fingerprint(rsa_key.public_key()))
    assert (wrong.error, wrong.private) == (complaints.WRONG_PASSWORD, None)


@pytest.mark.parametrize("name", ["pkcs8.pem", "pkcs8.der", "ec.jwk", "ring.gpg"])
def test_a_password_too_many_does_no_harm(formats: dict[str, bytes], name: str) -> None:
    """An open key beside which a password stands is used as it is."""
    assert not recognise.recognise(formats[name], b"secret").error


def test_a_file_may_hold_a_key_and_its_certificate(formats: dict[str, bytes]) -> None:
    """The private key speaks for the file, and the certificate beside it is a key of the file, too."""
    key = recognise.recognise(formats["chain-and-key.pem"])

    assert (key.kind, [each.kind for each in key.also]) == ("private-key", ["certificate"])
    assert key.also[0].fingerprint == key.fingerprint


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("ed25519.pem", "RSA and EC keys unwrap layers"),
        ("openssh.pem", "ssh-keygen -p -m PKCS8"),
        ("public.pem", "is no key to decrypt with"),
        ("public.jwk", "do not fit together"),
        ("junk", "not a key in a known format"),
        ("torn.pem", "cannot be parsed"),
    ],
)
def test_what_is_no_key_says_why(formats: dict[str, bytes], name: str, error: str) -> None:
    """A file that holds nothing to decrypt with is refused in words."""
    key = recognise.recognise(formats[name])

    assert error in key.error
    assert key.private is None


def test_nothing_private_is_shown(formats: dict[str, bytes], rsa_key: rsa.RSAPrivateKey) -> None:
    """repr of a loaded key holds its kind and fingerprint only."""
    shown = repr(recognise.recognise(formats["pkcs8.pem"]))

    assert str(rsa_key.private_numbers().d) not in shown
    assert "private=" not in shown


@given(st.binary(max_size=400))
def test_any_bytes_are_judged(data: bytes) -> None:
    """No content of a file raises, and what is no key says so."""
    key = recognise.recognise(data)

    assert key.kind or key.error


@given(st.text(max_size=200), st.sampled_from(["PRIVATE KEY", "RSA PRIVATE KEY", "CERTIFICATE", "EC PRIVATE KEY"]))
def test_any_pem_body_is_judged(body: str, label: str) -> None:
    """A broken body is an error that does not quote the body."""
    key = recognise.recognise(f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode())

    assert key.error
    assert len(body) < 8 or body not in key.error


@given(st.dictionaries(st.sampled_from(["kty", "n", "e", "d", "p", "q", "x", "y", "crv"]), st.text(max_size=20)))
def test_any_json_is_judged(fields: dict[str, str]) -> None:
    """No JSON object raises."""
    import json

    assert recognise.recognise(json.dumps(fields).encode()).error
    assert recognise.recognise(json.dumps({**fields, "kty": "RSA"}).encode()).error
    assert recognise.recognise(json.dumps({**fields, "kty": "EC"}).encode()).error


def test_a_giant_without_primes_is_not_taken_apart() -> None:
    """A JWK of ten thousands of bits that states no primes is refused at once: to look for them takes minutes."""
    number = base64.urlsafe_b64encode(b"\xff" * 6000).decode().rstrip("=")
    began = time.process_time()
    found = recognise.recognise(json.dumps({"kty": "RSA", "n": number, "e": "AQAB", "d": number}).encode())

    assert "do not fit together" in found.error
    assert time.process_time() - began < 1


def test_giant_exponents_are_not_raised_to() -> None:
    """Nor does a JWK whose modulus is of a usual size take its time through exponents that are not."""
    n, giant = (base64.urlsafe_b64encode(b"\xff" * size).decode().rstrip("=") for size in (1024, 6000))
    began = time.process_time()
    found = recognise.recognise(json.dumps({"kty": "RSA", "n": n, "e": giant, "d": giant}).encode())

    assert "do not fit together" in found.error
    assert time.process_time() - began < 1
