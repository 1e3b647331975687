"""A process that has as many threads as it may says so, and goes on as soon as there is room."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from bulkhead.errors import ResourceExhausted
from bulkhead.proto import images_pb2, keys_pb2
from image_svc import threads
from image_svc.alarms import Alarms
from image_svc.decryption.watched import Watched
from image_svc.proxied.ready import Ready
from image_svc.purpose import Purpose
from image_svc.rpc import transfers


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a block in which no thread can be started."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            yield

    return block


def test_threads(full: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """By itself, or of a pool."""
    with full(), threads.Pool(1) as pool:
        with pytest.raises(ResourceExhausted, match="can't start new thread: the service has as many threads"):
            threads.start(time.sleep, "x", 0)
        with pytest.raises(ResourceExhausted, match="can't start new thread: the service has as many threads"):
            pool.submit(time.sleep, 0)
    done = threading.Event()
    threads.start(done.set, "x").join(10)
    assert done.is_set()


def test_alarms(full: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """The block is not entered, and the next one starts the thread."""
    alarms, done = Alarms(), threading.Event()
    with full(), pytest.raises(ResourceExhausted), alarms.at(time.monotonic(), done.set):
        raise AssertionError("entered")
    with alarms.at(time.monotonic(), done.set):
        assert done.wait(10)


def test_transfers(full: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """A transfer says it to its caller."""
    with full(), pytest.raises(ResourceExhausted):
        next(transfers.stream(lambda watch: images_pb2.TransferResult()))


def test_watched(full: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """A layer whose decryptor nobody could watch is not begun."""
    with full(), pytest.raises(ResourceExhausted):
        Watched(None, keys_pb2.DecryptResult, 1.0, "sha256:1", lambda: None)  # type: ignore[arg-type] # not reached


def test_ready(full: Callable[[], contextlib.AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next container that wants an image in a snapshotter has it begun anew, and waits for nothing that is not."""
    ready = Ready.__new__(Ready)
    ready._lock, ready._work = threading.Lock(), {}
    made: list[str] = []

    def make(
        self: Ready, image: object, manifest: str, snapshotter: str, purpose: object, work: "Future[None]"
    ) -> None:
        made.append(manifest)
        work.set_result(None)

    monkeypatch.setattr(Ready, "_make", make)
    with full(), pytest.raises(ResourceExhausted):
        ready._begin(None, "m", "s", Purpose()).result(0)  # type: ignore[arg-type] # not looked at
    ready._begin(None, "m", "s", Purpose()).result(10)  # type: ignore[arg-type]
    assert made == ["m"]
