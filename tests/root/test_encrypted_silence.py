"""A decryptor that hangs in the middle of a layer: it is found out by its silence, and the layer begun again."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.dam import dam
from support.encrypted import Hand, entry, eventually, make_keys, push, seal
from support.images import MEDIA, Layer, busybox_layer, compress, digest
from support.stack import Stack

pytestmark = pytest.mark.root

SIZE = 40_000_000
SILENT = "the decryptor gave no sign of life for 1 s in the middle of a layer; trying again"


@pytest.fixture(scope="module")
def hand(registry: str) -> Iterator[Hand]:
    """A stack that takes a second's silence for a hang."""
    with Stack(registry, default="crun", number=96, own='decryptor_silence = "1s"') as stack:
        made = Hand(stack)
        make_keys(stack.directory)
        made.give(stack.directory / "mykey.pem")
        yield made


@pytest.fixture
def name(hand: Hand, registry: str, request: pytest.FixtureRequest) -> str:
    """An image with one encrypted layer that takes a while."""
    tar = Layer().file("dense", os.urandom(SIZE)).tar()
    top = seal(tar, (hand.stack.directory / "mykey.pub").read_bytes(), MEDIA["oci"]["plain"])
    base = busybox_layer()
    blob = compress(base, "gzip")
    layers = [(blob, entry(blob, MEDIA["oci"]["gzip"])), (top.cipher, top.entry)]
    name = request.node.name.removeprefix("test_").replace("_", "-")
    return push(registry, name, layers, [digest(base), digest(tar)], Cmd=["true"])


@contextmanager
def stopped(hand: Hand, registry: str, name: str) -> Iterator[tuple[int, "Future[str]"]]:
    """Stop the decryptor in the middle of the layer; hand out its pid and the pull once its silence was noticed."""
    with dam(registry, SIZE * 2 // 3) as held, ThreadPoolExecutor() as pool:
        pulling = pool.submit(hand.pull, name.replace(registry, held.address))
        assert held.full.wait(60)
        seen, pid = len(hand.stack.log), hand.stack.pid("decryptor")
        os.kill(pid, signal.SIGSTOP)
        held.opened.set()
        try:
            eventually(lambda: SILENT in hand.stack.log[seen:])
            yield pid, pulling
        finally:
            if hand.stack.pid("decryptor") == pid:
                os.kill(pid, signal.SIGCONT)


def check(hand: Hand, image: str) -> None:
    """See that the layer came out whole."""
    assert hand.run("--rm", image, "after", "sh", "-c", "wc -c </dense").stdout == f"{SIZE}\n".encode()


def held_by(hand: Hand) -> dict[str, tuple[int, int]]:
    """Return how many descriptors and threads the services on a layer's way have."""
    found = {}
    for service in ("image-svc", "image-svc-unpack", "decryptor"):
        process = Path(f"/proc/{hand.stack.pid(service)}")
        found[service] = len(os.listdir(process / "fd")), len(os.listdir(process / "task"))
    return found


def test_one_that_hangs_and_is_killed(hand: Hand, registry: str, name: str) -> None:
    """Silence ends the attempt in a second or two; with the next decryptor the pull comes to its end."""
    began = time.monotonic()
    with stopped(hand, registry, name) as (pid, pulling):
        assert time.monotonic() - began < 60
        os.kill(pid, signal.SIGKILL)
        hand.stack.wait_restarted("decryptor", pid)
        check(hand, pulling.result(60))


def test_one_that_comes_back_to_life(hand: Hand, registry: str, name: str) -> None:
    """Woken, it is asked again and has let go of what it had; nobody keeps a thread or a descriptor of the attempt."""
    hand.pull(f"{registry}/busybox:1")
    before = held_by(hand)
    with stopped(hand, registry, name) as (pid, pulling):
        os.kill(pid, signal.SIGCONT)
        check(hand, pulling.result(60))
        assert hand.stack.pid("decryptor") == pid

    def settled() -> bool:
        # Pools of threads and connections may have grown for good, but not by what an attempt holds.
        return all(now[0] <= then[0] + 2 for now, then in zip(held_by(hand).values(), before.values(), strict=True))

    eventually(settled)
    assert "Traceback" not in hand.stack.log
