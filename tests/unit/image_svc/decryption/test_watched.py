"""A layer in the hands of a decryptor that dies, hangs, or takes its time."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bulkhead import layers, paths, seqpacket
from bulkhead.config.model import Bulkhead, Config
from bulkhead.errors import DataLoss, DeadlineExceeded
from bulkhead.proto import keys_pb2
from image_svc.decryption.gatekeeper import DecryptorGone, Gatekeeper, Opened
from image_svc.decryption.watched import SIGNS, signs
from image_svc.patience import Patience
from image_svc.purpose import Purpose
from image_svc.store import Layer

LAYER = Layer("sha256:1", "application/vnd.oci.image.layer.v1.tar+encrypted", 10, "sha256:2", "sha256:2")
SILENCE = 1.0


class Decryptor:
    """Accepts one layer, says that it has begun, and leaves the rest to the test."""

    def __init__(self, state: Path) -> None:
        path = paths.layer_socket(state)
        path.parent.mkdir(parents=True)
        self._listener = seqpacket.listen(str(path))
        self.begins = True
        self.order: dict[str, Any] = {}
        self.fds: list[int] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self.connection, _ = self._listener.accept()
        self.order, self.fds = seqpacket.receive(self.connection)  # type: ignore[assignment]
        if self.begins:
            seqpacket.send(self.connection, {"started": {}})

    def say(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send a message to whoever has the layer decrypted."""
        seqpacket.send(self.connection, message, fds)

    def close(self) -> None:
        self._listener.close()
        self._thread.join(60)
        self.connection.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def decryptor(tmp_path: Path) -> Iterator[Decryptor]:
    """A decryptor under the test's hand."""
    made = Decryptor(tmp_path)
    yield made
    made.close()


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what is waited beyond the time for a key."""
    monkeypatch.setattr(layers, "GRACE", 0.1)
    monkeypatch.setattr(layers, "key_bound", lambda key_timeout: key_timeout)


@pytest.fixture
def gatekeeper(tmp_path: Path) -> Gatekeeper:
    """A gatekeeper with little patience."""
    config = Config(state=tmp_path, bulkhead=Bulkhead(decryptor_silence=SILENCE, key_timeout=0.1))
    return Gatekeeper(tmp_path, "node", config)


@contextmanager
def opened(gatekeeper: Gatekeeper, patience: Patience) -> Iterator[tuple[Opened, int]]:
    """Give the layer to the decryptor; hand out what it makes of it and where its bytes come out."""
    source, writer = os.pipe()
    try:
        with gatekeeper.decrypt(LAYER, "image", Purpose(), source, patience) as layer:
            reader = layer.take()
            try:
                yield layer, reader
            finally:
                os.close(reader)
    finally:
        os.close(source)
        os.close(writer)


def test_a_silent_decryptor_is_left(decryptor: Decryptor, gatekeeper: Gatekeeper) -> None:
    """Whoever reads comes to the end of what was written, though the decryptor holds its end open, and hears why."""
    patience = Patience(30.0, "pull")
    began = time.monotonic()
    with opened(gatekeeper, patience) as (layer, reader):
        os.write(decryptor.fds[2], b"half")

        assert [os.read(reader, 100), os.read(reader, 100)] == [b"half", b""]
        assert SILENCE <= time.monotonic() - began < 25
        with pytest.raises(DecryptorGone, match=f"no sign of life for {SILENCE:g} s in the middle of a layer"):
            layer.finish(patience)
        # One that wakes up has nobody to write for, and is told so.
        with pytest.raises(BrokenPipeError):
            os.write(decryptor.fds[2], b"rest")
        assert decryptor.connection.recv(10) == b""
    assert decryptor.order == {"decrypt": {"alive": SILENCE / SIGNS}}


def test_signs_of_life_keep_it_waiting(decryptor: Decryptor, gatekeeper: Gatekeeper) -> None:
    """A layer may take longer than silence may last; its end is the decryptor's word, not the end of its bytes."""
    patience = Patience(30.0, "pull")
    with opened(gatekeeper, patience) as (layer, reader):
        for _ in range(SIGNS + 2):
            time.sleep(SILENCE / SIGNS)
            decryptor.say({"alive": {}})
        os.write(decryptor.fds[2], b"whole")
        result = layers.dump(keys_pb2.DecryptResult(size=5))
        decryptor.say({"done": {}}, (result,))
        os.close(result)

        layer.finish(patience)
        assert [os.read(reader, 100), os.read(reader, 100)] == [b"whole", b""]


def test_a_verdict_against_the_layer(decryptor: Decryptor, gatekeeper: Gatekeeper) -> None:
    """The decryptor's own error is what is raised; its bytes come to an end with it."""
    patience = Patience(30.0, "pull")
    with opened(gatekeeper, patience) as (layer, reader):
        decryptor.say({"error": {"code": DataLoss.code, "message": "the MAC is wrong"}})

        assert os.read(reader, 100) == b""
        with pytest.raises(DataLoss, match="the MAC is wrong"):
            layer.finish(patience)


def test_a_decryptor_that_never_begins(decryptor: Decryptor, gatekeeper: Gatekeeper, tight: None) -> None:
    """One that neither begins nor refuses within the time for a key counts as gone: the layer is tried again."""
    decryptor.begins = False
    with pytest.raises(DecryptorGone, match="did not say 'started' within"), opened(gatekeeper, Patience(30.0, "pull")):
        pass


def test_a_pull_that_is_over_is_not_tried_again(decryptor: Decryptor, gatekeeper: Gatekeeper) -> None:
    """If it is the pull's own time that runs out meanwhile, that is what is said."""
    decryptor.begins = False
    with pytest.raises(DeadlineExceeded, match="pull did not finish"), opened(gatekeeper, Patience(0.3, "pull")):
        pass


def test_nothing_is_left_of_a_layer(decryptor: Decryptor, gatekeeper: Gatekeeper) -> None:
    """Whatever the end, neither a thread nor a descriptor stays."""
    gc.collect()  # what other tests left is not to go while this one counts
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with opened(gatekeeper, Patience(30.0, "pull")):
        assert threading.active_count() == threads  # the fake's thread has ended, the one that watches is there
    decryptor.connection.close()
    while decryptor.fds:
        os.close(decryptor.fds.pop())

    assert threading.active_count() == threads - 1
    assert len(os.listdir("/proc/self/fd")) == fds


@pytest.mark.parametrize(("silence", "expected"), [(30.0, 7.5), (0.001, layers.OFTEN), (1e6, layers.SELDOM)])
def test_signs_are_asked_for_as_they_may_be(silence: float, expected: float) -> None:
    """Whatever silence the configuration allows, what is asked for is something that the decryptor grants."""
    assert signs(silence) == expected
