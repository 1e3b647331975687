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


def test_what_nobody_encrypted(rsa_ring: pysequoia.Tsk, old_message: bytes) -> None:
    """A payload that stands open in a message is not said to have been opened by a key, though Sequoia returns it."""
    literal = openpgp.packet(11, openpgp.literal(PAYLOAD))
    assert pysequoia.decrypt(literal, decryptor=rsa_ring.decryptor()).bytes == PAYLOAD

    order = {"key": encode(bytes(rsa_ring)), "password": None}
    for message in (literal, openpgp.squeezed([literal]), literal + old_message, b""):
        assert pgp_module.opened(order | {"message": encode(message)}) is None


@pytest.mark.parametrize("cut", [20, 22])
def test_a_message_whose_digest_is_gone(rsa_ring: pysequoia.Tsk, cut: int) -> None:
    """Neither way returns what no digest protects."""
    message = made(rsa_ring, openpgp.packet(11, openpgp.literal(PAYLOAD)))
    order = {"key": encode(bytes(rsa_ring)), "password": None, "message": encode(message)}
    assert pgp_module.opened(order) == encode(PAYLOAD)
    at = message.rindex(bytes((0xC0 | 18, 255)))
    sealed = message[at + 6 :]
    cut_off = message[:at] + openpgp.packet(18, sealed[:-cut])

    assert pgp_module.opened(order | {"message": encode(cut_off)}) is None


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
