"""`python -m decryptor.schemes.pgp_module`: one OpenPGP message, one key, and the end.

A message out of an image may hold compressed data within compressed data: some hundred bytes become any number of
gigabytes, and the library that reads them gives neither a bound nor the interpreter's lock. So it is read in a process
that has its memory, its time and its system calls counted.

The order comes as JSON on standard input, `{"key": base64, "password": base64 or null, "message": base64}`; the answer
goes as JSON to standard output, `{"data": base64}`, or `{"data": null}` if the message is not for this key.
"""

import base64
import contextlib
import json
import resource
import sys
from typing import Any

import pysequoia

from decryptor import confinement, hardening
from decryptor.options import encode
from decryptor.schemes import pgp_old

#: Bytes of address space; the library holds back 25 MiB until it has seen the end of a message.
_MEMORY = 512 << 20
#: Bytes of private options.
_PAYLOAD_LIMIT = 64 * 1024
#: The packet type of a session key under a public key.
_SESSION_KEY = 1


def main() -> int:
    """Carry out the order."""
    hardening.close_to_others()
    order = json.load(sys.stdin)
    hardening.lock_memory()
    # Neither of these stops the work: the decryptor has said at its start what this kernel cannot do.
    confinement.install()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    json.dump({"data": opened(order)}, sys.stdout)
    return 0


def opened(order: dict[str, Any]) -> str | None:
    """Return the payload of the order's message in base64; None if it is not for the key, or too large to be one."""
    ring, message = base64.b64decode(order["key"]), base64.b64decode(order["message"])
    password = None if order["password"] is None else base64.b64decode(order["password"])
    # The library reads a message that nobody encrypted, too: no key would have opened it, and one would be named.
    if not _for_keys(message):
        return None
    data = None
    for way in (_sequoia, pgp_old.opened):
        # A panic of the library is no Exception, and what it says may quote its input.
        with contextlib.suppress(BaseException):
            data = data or way(ring, password, message)
    return encode(data) if data and len(data) <= _PAYLOAD_LIMIT else None


def _for_keys(message: bytes) -> bool:
    """Whether the first packet, in either format (RFC 9580, 4.2), is a session key encrypted for somebody's key."""
    head = message[0] if message else 0
    return head & 0x80 != 0 and (head & 0x3F if head & 0x40 else head >> 2 & 0x0F) == _SESSION_KEY


def _sequoia(ring: bytes, password: bytes | None, message: bytes) -> bytes | None:
    key = pysequoia.Tsk.from_bytes(ring)
    opener = key.decryptor() if password is None else key.decryptor(password.decode())
    return pysequoia.decrypt(message, decryptor=opener).bytes


if __name__ == "__main__":
    sys.exit(main())
