"""OpenPGP (RFC 9580) through Sequoia: messages whose payload is the private options, keys out of secret rings.

What Sequoia says of an error carries a backtrace and may carry input, so its texts stay here. Messages come from images
and are read in a process of their own (pgp_module.py), which is given the key they are tried with.
"""

import base64
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pysequoia
from pysequoia.packet import PacketPile, Tag

from bulkhead.errors import BulkheadError, DeadlineExceeded, FailedPrecondition, InvalidArgument
from decryptor import costs
from decryptor.complaints import NEEDS_PASSWORD, WRONG_PASSWORD
from decryptor.deadline import Deadline
from decryptor.helper import Helper
from decryptor.options import encode

#: Keys looked at in one ring.
KEYS_LIMIT = 64
#: Messages read at one time: each may fill the memory that its process has.
READERS = 4
_readers = threading.BoundedSemaphore(READERS)
#: RuntimeError and the like; a panic of the library is a BaseException whose class it does not export.
_ERRORS = tuple(kind for kind in BaseException.__subclasses__() if kind.__name__ in ("Exception", "PanicException"))
_STARTS, _SECRETS = (Tag.SecretKey, Tag.PublicKey), (Tag.SecretKey, Tag.SecretSubkey)


@dataclass(frozen=True)
class Secret:
    """One OpenPGP key of a ring that can decrypt, and the password that opens it, or why it cannot."""

    fingerprint: str = ""
    error: str = ""
    key: bytes = field(default=b"", repr=False, compare=False)
    password: bytes | None = field(default=None, repr=False, compare=False)


def secrets(ring: bytes, password: bytes | None) -> list[Secret]:
    """Return the secret keys of a ring, binary or armoured; an unusable one with its error. None for no ring."""
    try:
        packets = list(PacketPile.from_bytes(ring))
    except _ERRORS:
        return []
    groups: list[list[pysequoia.packet.Packet]] = []
    for packet in packets:
        if packet.tag in _STARTS:
            groups.append([])
        if groups:
            groups[-1].append(packet)
    return [_secret(group, password) for group in groups[:KEYS_LIMIT] if group[0].tag == Tag.SecretKey]


def _secret(packets: "list[pysequoia.packet.Packet]", password: bytes | None) -> Secret:
    try:
        key = pysequoia.Tsk.from_packets(packets)
        fingerprint = key.extract_certificate().fingerprint
    except _ERRORS:
        return Secret(error="an OpenPGP secret key that cannot be parsed")
    try:
        key.decryptor()
        return Secret(fingerprint, key=bytes(key))
    except _ERRORS as error:
        if str(error).startswith("No suitable decryption subkey"):
            return Secret(fingerprint, "an OpenPGP key without a part for decryption")
    if not password:
        return Secret(fingerprint, NEEDS_PASSWORD)
    try:
        costs.check_openpgp(packet.body or b"" for packet in packets if packet.tag in _SECRETS)
        key.decryptor(password.decode())
        return Secret(fingerprint, key=bytes(key), password=password)
    except costs.TooCostly as error:
        return Secret(fingerprint, str(error))
    except _ERRORS:
        return Secret(fingerprint, WRONG_PASSWORD)


def unwrap(secret: Secret, message: bytes, helper: Helper, deadline: Deadline) -> bytes | None:
    """Return the payload of a message for this key, else None; BulkheadError if it takes more time or memory than any.

    The process may not outlive the deadline; it is nobody's answer that is waited for.
    """
    order = {
        "key": encode(secret.key),
        "password": None if secret.password is None else encode(secret.password),
        "message": encode(message),
    }
    program = [sys.executable, "-I", "-m", "decryptor.schemes.pgp_module"]
    try:
        with _reader(deadline):
            answer = json.loads(helper.run(program, input=json.dumps(order).encode(), timeout=deadline.for_answer))
        data = answer["data"]
        return None if data is None else base64.b64decode(data)
    except FailedPrecondition:
        # What it wrote when it ended is a backtrace.
        raise FailedPrecondition(
            "an OpenPGP message whose reading ended its process: out of memory, or worse"
        ) from None
    except BulkheadError as error:
        raise type(error)(f"an OpenPGP message: {error}") from error
    except (ValueError, LookupError, TypeError):
        raise FailedPrecondition("the process that reads OpenPGP messages answered something else") from None


@contextmanager
def _reader(deadline: Deadline) -> Iterator[None]:
    if not _readers.acquire(timeout=deadline.for_answer):
        raise DeadlineExceeded(f"{READERS} others were being read all the time")
    try:
        yield
    finally:
        _readers.release()


def wrap(payload: bytes, recipients: list[tuple[bytes, str]]) -> bytes:
    """Return a message for keys out of public rings, each found by user id or mail address; "" means the only key.

    InvalidArgument names the recipient that no key or more than one is found for.
    """
    found = [_find(ring, name) for ring, name in recipients]
    try:
        return pysequoia.encrypt(payload, recipients=found, armor=False)
    except _ERRORS:
        raise InvalidArgument("pgp recipient: no key that can be encrypted for, or one that has expired") from None


def _find(ring: bytes, name: str) -> pysequoia.Cert:
    try:
        certificates = pysequoia.Cert.split_bytes(ring)
    except _ERRORS:
        raise InvalidArgument("pgp recipient: not an OpenPGP public key ring") from None
    fitting = [each for each in certificates if _fits(each, name)]
    if len(fitting) != 1:
        raise InvalidArgument(f"pgp recipient {name!r}: {len(fitting)} keys of the ring fit, expected one")
    return fitting[0]


def _fits(certificate: pysequoia.Cert, name: str) -> bool:
    if not name:
        return True
    if len(name) >= 16 and certificate.fingerprint.lower().endswith(name.lower().removeprefix("0x")):
        return True
    users = [str(user) for user in certificate.user_ids]
    return any(user == name or user.endswith(f"<{name}>") for user in users)
