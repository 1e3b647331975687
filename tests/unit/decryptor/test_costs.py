"""What a password would cost is read before it is tried, and bounded."""

import base64
import contextlib
import itertools
import time

import pysequoia
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pysequoia.packet import PacketPile, Tag

from decryptor import costs
from decryptor.files import KeyFile
from decryptor.keyring import Keyring
from decryptor.recognise import recognise
from decryptor.schemes import der

PBKDF2, SCRYPT, PKCS12 = "1.2.840.113549.1.5.12", "1.3.6.1.4.1.11591.4.11", "1.2.840.113549.1.12.1.3"
#: S2K specifiers of OpenPGP (RFC 9580, 3.7.1): iterated with a coded count, and Argon2 with t, p, m.
SALT8, SALT16 = bytes(8), bytes(16)


def protected(derivation: str, *numbers: int) -> bytes:
    """Return an EncryptedPrivateKeyInfo that says it was made with such a derivation."""
    settings = der.write(der.SEQUENCE, der.write(der.OCTET_STRING, SALT8), *map(der.integer, numbers))
    if derivation == PKCS12:
        algorithm = der.write(der.SEQUENCE, der.oid(PKCS12), settings)
    else:
        cipher = der.write(der.SEQUENCE, der.oid("2.16.840.1.101.3.4.1.42"), der.write(der.OCTET_STRING, bytes(16)))
        parts = der.write(der.SEQUENCE, der.write(der.SEQUENCE, der.oid(derivation), settings), cipher)
        algorithm = der.write(der.SEQUENCE, der.oid("1.2.840.113549.1.5.13"), parts)
    return der.write(der.SEQUENCE, algorithm, der.write(der.OCTET_STRING, bytes(64)))


def pem(data: bytes) -> bytes:
    """Return it as PEM."""
    label = b"ENCRYPTED PRIVATE KEY-----\n"
    return b"-----BEGIN " + label + base64.encodebytes(data) + b"-----END " + label


def ring(key: pysequoia.Tsk, s2k: bytes) -> bytes:
    """Return the key's ring as if its secrets were protected by a password with that S2K specifier."""
    public = {packet.fingerprint: packet.body for packet in PacketPile.from_bytes(bytes(key.extract_certificate()))}
    packets = b""
    for packet in PacketPile.from_bytes(bytes(key)):
        body = packet.body or b""
        if packet.tag in (Tag.SecretKey, Tag.SecretSubkey):
            body = (public[packet.fingerprint] or b"") + bytes((254, 9)) + s2k + bytes(16 + 64)
        packets += bytes((0xC0 | int(packet.tag), 255)) + len(body).to_bytes(4, "big") + body
    return packets


@pytest.mark.parametrize("derivation", [PBKDF2, PKCS12])
@pytest.mark.parametrize("form", [pem, bytes])
def test_too_many_rounds_disable_the_key(derivation: str, form: type[bytes]) -> None:
    """2^31 rounds are not begun; the complaint names the file and says how many there would be."""
    began = time.monotonic()
    keys = Keyring([KeyFile("slow.pem", form(protected(derivation, 2**31))), KeyFile("slow.pem.password", b"x")])

    assert time.monotonic() - began < 30
    (complaint,) = keys.complaints()
    assert complaint.startswith(
        "key file 'slow.pem': is protected by 2147483648 rounds of key derivation, and at most "
    )
    assert "openssl pkcs8 -topk8 -iter" in complaint


@pytest.mark.parametrize("numbers", [(2**31, 8, 1), (2**14, 2**20, 1), (2**14, 8, 2**20), (2, 1, 2**22)])
def test_too_much_of_scrypt_disables_the_key(numbers: tuple[int, int, int]) -> None:
    """N and r that take gigabytes, and a p that goes through as many or begins with them, are not begun."""
    n, r, p = numbers

    assert f"is protected by scrypt with N={n}, r={r}, p={p}: " in recognise(protected(SCRYPT, *numbers), b"x").error


@pytest.mark.parametrize("settings", [(PBKDF2, 600_000), (SCRYPT, 2**17, 8, 1), (PKCS12, 100_000)])
def test_what_is_asked_of_passwords_is_let_through(settings: tuple[str, int]) -> None:
    """What OWASP recommends, and keys of common tools have, is tried."""
    costs.check_pkcs8(protected(*settings))


@pytest.mark.parametrize("name", ["encrypted-pkcs8.pem", "encrypted-pkcs8.der"])
def test_a_real_key_is_read_as_it_is(formats: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The rounds that a library's file states, 2048 with this one, are found where they stand."""
    assert not recognise(formats[name], b"secret").error

    monkeypatch.setattr(costs, "ROUNDS_LIMIT", 2047)
    assert recognise(formats[name], b"secret").error.startswith("is protected by 2048 rounds")


@pytest.mark.parametrize(
    ("s2k", "expected"),
    [
        (bytes((4,)) + SALT16 + bytes((1, 4, 31)), "is protected by Argon2 with t=1, p=4, m=31: "),
        (bytes((4,)) + SALT16 + bytes((255, 4, 17)), "is protected by Argon2 with t=255, p=4, m=17: "),
        (bytes((3, 8)) + SALT8 + bytes((255,)), "a private key that its password does not open"),
    ],
)
def test_openpgp_keys_are_bounded_too(pgp_key: pysequoia.Tsk, s2k: bytes, expected: str) -> None:
    """Argon2 beyond the bounds is not begun; the most that one key can have hashed is tried."""
    assert recognise(ring(pgp_key, s2k), b"x").error.startswith(expected)


def test_many_parts_are_counted_together() -> None:
    """A key whose parts all take the most hashing there is exceeds the bound by their number."""
    body = bytes((4, 0, 0, 0, 0, 25)) + bytes(32) + bytes((254, 9, 3, 8)) + SALT8 + bytes((255,))
    most = next(number for number in itertools.count(1) if number * 65_011_712 > costs.WORK_LIMIT)

    costs.check_openpgp([body] * (most - 1))
    with pytest.raises(costs.TooCostly, match="is protected by hashing"):
        costs.check_openpgp([body] * most)


def test_argon2_of_many_parts_is_counted_together() -> None:
    """A key of parts that each stay within the bound may not go through more than it together."""
    body = bytes((4, 0, 0, 0, 0, 25)) + bytes(32) + bytes((253, 9, 2, 4)) + SALT16 + bytes((2, 4, 18))

    costs.check_openpgp([body] * 2)
    with pytest.raises(costs.TooCostly, match=f"{3 << 29} bytes"):
        costs.check_openpgp([body] * 3)


@given(st.binary(max_size=200))
def test_hostile_bytes_are_malformed(data: bytes) -> None:
    """Whatever the bytes, looking at them ends in an answer or in an error of ours."""
    with contextlib.suppress(costs.Malformed, costs.TooCostly):
        costs.check_pkcs8(data)
    with contextlib.suppress(costs.Malformed, costs.TooCostly):
        costs.check_openpgp([data])
