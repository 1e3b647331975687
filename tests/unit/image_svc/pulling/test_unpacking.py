"""A layer between download, decryptor and unpack helper: whatever one of them does, the others are let go."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest

from bulkhead.errors import BulkheadError, Cancelled, NotFound, ResourceExhausted
from image_svc.decryption.gatekeeper import Chain, Decoder
from image_svc.ingest import Content, Ingest
from image_svc.patience import Patience
from image_svc.pulling.progress import LayerProgress
from image_svc.pulling.turns import Turns
from image_svc.pulling.unpacking import Unpacking
from image_svc.store import Layer
from image_svc.unpack.protocol import Limits, Unpacked

DIGEST = "sha256:" + "1" * 64
LAYER = Layer(DIGEST, "application/vnd.oci.image.layer.v1.tar+encrypted", 1 << 20, DIGEST, DIGEST)


class Source:
    """A download."""

    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest
        self.future: Future[None] = Future()

    def show(self, progress: LayerProgress) -> None:
        """Show nothing."""

    def fail(self, error: BulkheadError) -> None:
        """Come to an end."""
        self.future.set_exception(error)
        self.ingest.fail(error)


class Helper:
    """An unpack helper that reads to the end of what it is given."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()

    def unpack(self, name: str, stream: int, limits: Limits, algorithm: str = "sha256") -> Unpacked:
        """Read the layer."""
        self.began.set()
        while os.read(stream, 65536):
            pass
        self.ended.set()
        raise ResourceExhausted("cut")

    def remove(self, name: str) -> None:
        """Remove nothing."""

    def ping(self, *, timeout: float = 5.0) -> None:
        """Be there."""


class Hanging:
    """A decryptor that reads nothing, and whose output ends when it is hung up on."""

    @contextmanager
    def open(self, source: int, patience: Patience) -> Iterator[Chain]:
        """Begin."""
        taken = os.dup(source)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            yield Chain(reader, ())
        finally:
            os.close(writer)
            os.close(taken)

    def ping(self, *, timeout: float = 5.0) -> None:
        """Be there."""


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    """Return a download whose first half is here."""
    content = Content(tmp_path)
    ingest = content.open(DIGEST, 1 << 20)
    ingest.write(memoryview(bytes(1 << 19)))
    yield Source(ingest)
    ingest.close()


def job(source: Source, helper: Helper, *, decrypted: bool = True) -> Unpacking:
    """Return the layer's work."""

    @contextmanager
    def opened(avoid: tuple[str, ...]) -> Iterator[tuple[Source, bool]]:
        yield source, True

    decoder = cast(Decoder, Hanging()) if decrypted else None
    return Unpacking(LAYER, 1, opened, helper, Limits(), Turns(2), Patience(60.0, "layer"), decoder)


def descriptors() -> set[str]:
    """Return what this process has open; what earlier tests have still to close may be missing from the next answer."""
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


def test_a_download_that_fails_before_a_decryptor_that_hangs(source: Source) -> None:
    """The decryptor is hung up on, so that the helper comes to its end, before the failure is told."""
    before, helper = descriptors(), Helper()
    work = job(source, helper)
    runner = threading.Thread(target=work.execute)
    runner.start()
    assert helper.began.wait(10)
    began = time.monotonic()
    source.fail(NotFound("gone"))
    runner.join(30)

    assert time.monotonic() - began < 5
    assert isinstance(work.future.exception(timeout=0), NotFound)
    assert helper.ended.is_set()
    assert descriptors() <= before


def test_no_thread_for_the_helper(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as a limit that was reached, and no descriptor of the attempt stays."""
    before = descriptors()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    source.future.set_result(None)
    work = job(source, Helper())
    work.execute()
    assert isinstance(work.future.exception(timeout=0), ResourceExhausted)
    assert descriptors() <= before


def test_a_layer_that_is_called_off_once_all_of_it_was_fed(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not over before the helper has let go of the directory: one made after its removal would stay."""
    helper = Helper()
    go_on = threading.Event()
    unpack = helper.unpack

    def late(name: str, stream: int, limits: Limits, algorithm: str = "sha256") -> Unpacked:
        helper.began.set()
        assert go_on.wait(30)
        return unpack(name, stream, limits, algorithm)

    monkeypatch.setattr(helper, "unpack", late)
    source.ingest.write(memoryview(bytes(1 << 19)))
    source.ingest.finish()
    work = job(source, helper, decrypted=False)
    runner = threading.Thread(target=work.execute)
    runner.start()
    assert helper.began.wait(10)
    until = time.monotonic() + 30
    while work.progress.unpacked < work.layer.size and time.monotonic() < until:
        time.sleep(0.001)
    assert work.progress.unpacked == work.layer.size
    time.sleep(0.05)  # it waits for the answer now
    work.patience.cancel()
    runner.join(0.3)
    assert runner.is_alive()
    go_on.set()
    runner.join(30)
    assert helper.ended.is_set()
    assert isinstance(work.future.exception(timeout=0), Cancelled)
