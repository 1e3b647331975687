"""A blob goes down a pipe as it arrives, and whoever stands still holds nobody."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bulkhead.errors import Cancelled, DeadlineExceeded, NotFound
from image_svc.ingest import Content, Ingest
from image_svc.patience import Patience
from image_svc.pulling.feed import Feed
from image_svc.pulling.movers import AT_ONCE, moving
from image_svc.pulling.progress import LayerProgress, LayerState
from image_svc.pulling.turns import Turns

SIZE = (4 << 20) + 12345
DIGEST = "sha256:" + "5" * 64


class Pipe:
    """A pipe, a blob that arrives, and what feeds the one from the other."""

    def __init__(self, content: Content) -> None:
        self.reader, self.writer = os.pipe()
        self.blob: Ingest = content.open(DIGEST, SIZE)
        self.patience = Patience(60.0, "layer")
        self.progress = LayerProgress(DIGEST, SIZE)
        self.answered = threading.Event()
        self.turns = Turns(1)
        self.feed = Feed(self.blob, self.writer, self.progress, self.patience, self.answered.is_set)

    def arrive(self, data: bytes) -> None:
        """Have all of the blob arrive, a piece at a time."""
        view = memoryview(data)
        for begin in range(0, SIZE, 700_000):
            self.blob.write(view[begin : begin + 700_000])
        self.blob.finish()

    def run(self) -> None:
        """Feed until the end, and close the pipe."""
        with self.turns.begin(self.patience) as turn:
            try:
                self.feed.run(turn)
            finally:
                os.close(self.writer)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """Return a pipe and a blob of which nothing is here."""
    made = Pipe(Content(tmp_path))
    yield made
    made.blob.close()
    if made.reader >= 0:
        os.close(made.reader)


def test_everything_arrives(pipe: Pipe) -> None:
    """A reader gets every byte once and in order, whether it was here before or comes meanwhile."""
    data = os.urandom(SIZE)
    arriving = threading.Thread(target=pipe.arrive, args=(data,))
    feeding = threading.Thread(target=pipe.run)
    for thread in (feeding, arriving):
        thread.start()
    with os.fdopen(pipe.reader, "rb", closefd=False) as reader:
        assert reader.read() == data
    for thread in (feeding, arriving):
        thread.join(60)
    assert (pipe.progress.unpacked, pipe.progress.state) == (SIZE, LayerState.UNPACKING)


def test_a_slot_is_left_while_nothing_comes(pipe: Pipe) -> None:
    """A layer whose download stands still leaves its slot to another, and has one again when more comes."""
    data = os.urandom(SIZE)
    half = SIZE // 2
    pipe.blob.write(memoryview(data)[:half])
    feeding = threading.Thread(target=pipe.run)
    feeding.start()
    with os.fdopen(pipe.reader, "rb", closefd=False) as reader:
        assert reader.read(half) == data[:half]
        with pipe.turns.begin(pipe.patience) as other:
            other.take()
        pipe.blob.write(memoryview(data)[half:])
        pipe.blob.finish()
        assert reader.read() == data[half:]
    feeding.join(60)


def test_a_reader_that_stands_still(pipe: Pipe) -> None:
    """Does not hold the thread that feeds it once the layer is called off."""
    pipe.arrive(bytes(SIZE))
    threading.Timer(0.1, pipe.patience.cancel).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        pipe.run()
    assert time.monotonic() - began < 25


def test_a_helper_that_has_answered(pipe: Pipe) -> None:
    """What stands still between the feeding thread and a helper that has answered already does not hold the thread."""
    pipe.arrive(bytes(SIZE))
    threading.Timer(0.1, pipe.answered.set).start()
    began = time.monotonic()
    pipe.run()
    assert time.monotonic() - began < 25
    assert pipe.progress.unpacked < SIZE


def test_a_reader_that_lets_go(pipe: Pipe) -> None:
    """Ends the feeding without an error: what it answers says why."""
    pipe.arrive(bytes(SIZE))
    os.close(pipe.reader)
    pipe.reader = -1
    pipe.run()
    assert pipe.progress.unpacked == 0


def test_a_download_that_fails(pipe: Pipe) -> None:
    """Raises its own reason."""
    pipe.blob.write(memoryview(bytes(1000)))
    threading.Timer(0.1, pipe.blob.fail, (NotFound("gone"),)).start()
    with pytest.raises(NotFound, match="gone"):
        pipe.run()


def test_a_file_that_is_cut_short(pipe: Pipe) -> None:
    """A partial file that another download begins anew is called off, not waited for."""
    pipe.arrive(bytes(SIZE))
    os.ftruncate(pipe.blob.fd, 1000)
    with pytest.raises(Cancelled, match="cut short"):
        pipe.run()
    assert pipe.progress.unpacked == 1000


def test_others_that_move_bytes_for_ever(pipe: Pipe) -> None:
    """A feeder that comes to no turn of moving bytes ends with its layer's time."""
    pipe.patience = Patience(0.2, "layer")
    pipe.feed = Feed(pipe.blob, pipe.writer, pipe.progress, pipe.patience, pipe.answered.is_set)
    pipe.arrive(bytes(SIZE))
    with ExitStack() as held:
        for _ in range(AT_ONCE):
            held.enter_context(moving(Patience(5.0, "other"), "other"))
        with pytest.raises(DeadlineExceeded, match="the disk takes nothing"):
            pipe.run()
    assert pipe.progress.unpacked == 0
