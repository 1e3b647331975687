"""The claim of the key's isolation, looked for in memory: no other process of a stack holds a trace of it."""

import base64
import os
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from support.memory import found
from support.small_stack import SmallStack, small_stack

pytestmark = pytest.mark.root

OTHERS = ("cri-frontend", "image-svc", "image-svc-unpack", "sandbox-svc", "stream-svc", "bulkhead-shim-zygote")


@pytest.fixture(scope="module")
def traces() -> list[bytes]:
    """What would betray the key: its DER, both primes in both byte orders, a line of its PEM."""
    return []


@pytest.fixture(scope="module")
def stack(traces: list[bytes]) -> Iterator[SmallStack]:
    """A running stack with one RSA key."""
    key = rsa.generate_private_key(65537, 2048)
    numbers = key.private_numbers()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    for prime in (numbers.p, numbers.q):
        traces += [prime.to_bytes(128, "big"), prime.to_bytes(128, "little")]
    traces += [der[40:], pem.splitlines()[10]]
    with small_stack() as made:
        (made.directory / "keys" / "node.pem").write_bytes(pem)
        made.start()
        yield made


@pytest.mark.parametrize("name", OTHERS)
def test_other_services_hold_no_key(stack: SmallStack, traces: list[bytes], name: str) -> None:
    """Neither before nor after a restart of the decryptor does any other service's memory hold a trace."""
    assert found(stack.pid(name), traces) == 0


def test_the_supervisor_holds_no_key(stack: SmallStack, traces: list[bytes]) -> None:
    """The supervisor, whose forks the services are, holds none either, also after it started the decryptor again."""
    assert stack.process is not None
    old = stack.pid("decryptor")
    os.kill(old, 9)
    stack.wait(lambda: old not in stack.pids("decryptor") and found(stack.pid("decryptor"), traces) > 0)

    assert found(stack.process.pid, traces) == 0
    assert found(stack.pid("image-svc"), traces) == 0


def test_the_search_finds_a_key(stack: SmallStack, traces: list[bytes]) -> None:
    """The same search finds the key where it is, so it would find it elsewhere."""
    stack.wait(lambda: found(stack.pid("decryptor"), traces) > 0)
