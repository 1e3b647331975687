"""Syncs in rounds: each for all who asked before it began."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from bulkhead.errors import DeadlineExceeded, Internal
from image_svc.ingest import Content
from image_svc.patience import Patience
from image_svc.pulling.writeback import Writeback
from image_svc.unpack.client import UnpackClient
from image_svc.unpack.protocol import DiskFull
from support.fake_registry import FakeUnpack


class SlowDisk(Content):
    """Counts its syncs; each waits until it is let go, and may fail."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (root / "snapshots").mkdir()
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.syncs = 0
        self.failure: OSError | None = None

    def sync(self) -> None:
        """Begin, wait, end."""
        self.syncs += 1
        self.begun.release()
        assert self.go.acquire(timeout=60)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def disk(tmp_path: Path) -> SlowDisk:
    """A store on one file system."""
    return SlowDisk(tmp_path)


@pytest.fixture
def writeback(disk: SlowDisk) -> Writeback:
    """Its syncs, with a helper that must not be needed."""
    return Writeback(disk, cast(UnpackClient, FakeUnpack()))


def patience(seconds: float = 10) -> Patience:
    """Return patience for one wait."""
    return Patience(seconds, "test")


def test_what_was_written_during_a_sync_waits_for_the_next(disk: SlowDisk, writeback: Writeback) -> None:
    """A sync that had begun may have passed the bytes by: who asks meanwhile waits for one more."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(writeback.wait, patience(), time.monotonic())
        assert disk.begun.acquire(timeout=60)
        second = pool.submit(writeback.wait, patience(), time.monotonic())
        disk.go.release()
        first.result(timeout=60)
        assert disk.begun.acquire(timeout=60)
        assert not second.done()
        disk.go.release()
        second.result(timeout=60)
    assert disk.syncs == 2


def test_a_failure_is_told_to_those_who_wait(disk: SlowDisk, writeback: Writeback) -> None:
    """A full disk fails the wait, and the next one asks the disk again."""
    disk.failure = OSError(28, "No space left on device")
    disk.go.release(2)
    with pytest.raises(DiskFull, match="No space left"):
        writeback.wait(patience(), time.monotonic())
    disk.failure = None
    writeback.wait(patience(), time.monotonic())
    assert disk.syncs == 2


def test_a_failure_that_another_pull_was_told(disk: SlowDisk, writeback: Writeback) -> None:
    """The disk says once that it could not write: whoever had written by then is told, though the next sync is fine."""
    before = time.monotonic()
    disk.failure = OSError(5, "Input/output error")
    disk.go.release(4)
    with pytest.raises(Internal, match="Input/output error"):
        writeback.wait(patience(), time.monotonic())
    disk.failure = None
    for _ in range(2):
        with pytest.raises(Internal, match="Input/output error"):
            writeback.wait(patience(), before)
    writeback.wait(patience(), time.monotonic())


def test_a_disk_that_hangs_ends_the_wait(disk: SlowDisk, writeback: Writeback) -> None:
    """Whoever waits is let go at the deadline, not when the disk answers."""
    with pytest.raises(DeadlineExceeded):
        writeback.wait(patience(0.2), time.monotonic())
    disk.go.release()


def test_snapshots_on_another_file_system(disk: SlowDisk, tmp_path: Path) -> None:
    """The helper syncs what lies elsewhere, here where nobody can see it."""
    (tmp_path / "snapshots").rmdir()
    helper = FakeUnpack()
    disk.go.release()
    Writeback(disk, cast(UnpackClient, helper)).wait(patience(), time.monotonic())
    assert helper.calls == [("sync",)]
