"""OpenPGP messages in the form of Go's first library, which skopeo of Debian 12 writes."""

import contextlib

import pysequoia
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decryptor.options import encode
from decryptor.schemes import pgp_module, pgp_old
from support import openpgp

PAYLOAD = b'{"symkey":"' + b"A" * 170 + b'"}'


@pytest.fixture(scope="module")
def rsa_ring() -> pysequoia.Tsk:
    """A key whose parts are RSA."""
    return pysequoia.Tsk.generate(user_id="old", cipher_suite=pysequoia.CipherSuite.RSA2k)


@pytest.fixture(scope="module")
def old_message(rsa_ring: pysequoia.Tsk) -> bytes:
    """A message as Go's first library writes it."""
    return made(rsa_ring, openpgp.parted(11, openpgp.literal(PAYLOAD)))


def made(key: pysequoia.Tsk, *contents: bytes) -> bytes:
    """Return a message of packets in small parts."""
    return openpgp.message(b"".join(contents), bytes(key.extract_certificate()))


def test_small_parts_are_put_together(rsa_ring: pysequoia.Tsk) -> None:
    """A message whose literal comes in parts down to one byte opens here, though not with Sequoia."""
    message = made(rsa_ring, openpgp.parted(11, openpgp.literal(PAYLOAD)))
    with pytest.raises(RuntimeError, match="Malformed"):
        pysequoia.decrypt(message, decryptor=rsa_ring.decryptor())

    assert pgp_old.opened(bytes(rsa_ring), None, message) == PAYLOAD
    order = {"key": encode(bytes(rsa_ring)), "password": None, "message": encode(message)}
    assert pgp_module.opened(order) == encode(PAYLOAD)


def test_what_else_may_be_inside(rsa_ring: pysequoia.Tsk) -> None:
    """Compressed data, and more packets than the one literal, are not read in this way."""
    literal = openpgp.parted(11, openpgp.literal(PAYLOAD))

    assert pgp_old.opened(bytes(rsa_ring), None, made(rsa_ring, openpgp.squeezed([literal]))) is None
    assert pgp_old.opened(bytes(rsa_ring), None, made(rsa_ring, literal, literal)) is None


def test_for_another_key(rsa_ring: pysequoia.Tsk, pgp_key: pysequoia.Tsk) -> None:
    """A message for another key, and a key of another kind, come to nothing."""
    message = made(rsa_ring, openpgp.parted(11, openpgp.literal(PAYLOAD)))

    assert pgp_old.opened(bytes(pgp_key), None, message) is None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_message_does_no_harm(rsa_ring: pysequoia.Tsk, old_message: bytes, data: st.DataObject) -> None:
    """Whatever byte is changed or cut, the payload comes out unchanged or not at all."""
    message = bytearray(old_message)
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(message[: data.draw(st.integers(1, len(message)))])
    with contextlib.suppress(ValueError, IndexError):
        assert pgp_old.opened(bytes(rsa_ring), None, cut) in (None, PAYLOAD)
