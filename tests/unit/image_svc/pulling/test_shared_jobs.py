"""Work shared between pulls, and the patience of each of them."""

import threading
import time

import pytest

from bulkhead.errors import Cancelled, DeadlineExceeded, Internal, NotFound, ResourceExhausted
from image_svc.patience import Patience
from image_svc.pulling.shared_jobs import Job, Jobs, all_done
from image_svc.slots import Slots


class Count(Job[int]):
    """Counts how often it ran and was let go; waits for a gate."""

    def __init__(self, gate: threading.Event, log: list[str], error: Exception | None = None) -> None:
        super().__init__(Patience(5.0, "count"))
        self.gate, self.log, self.error = gate, log, error

    def run(self) -> int:
        """Wait for the gate, or until called off."""
        self.log.append("run")
        with self.patience.interruptible(self.gate.set):
            self.gate.wait(30)
        self.patience.check()
        if self.error:
            raise self.error
        return len(self.log)

    def release(self) -> None:
        """Note it."""
        self.log.append("release")


def patience(seconds: float = 60.0) -> Patience:
    """Return a patience for a test."""
    return Patience(seconds, "test")


def test_second_joins_the_first() -> None:
    """Two that want the same share one run; it is let go after the last of them."""
    jobs, gate, log = Jobs(), threading.Event(), list[str]()
    with jobs.join("k", lambda: Count(gate, log), patience()) as (first, mine):
        with jobs.join("k", lambda: Count(gate, log), patience()) as (second, also_mine):
            assert (first is second, mine, also_mine) == (True, True, False)
            gate.set()
            assert patience().wait(second.future) == 1
        assert log == ["run"]
    assert log == ["run", "release"]
    assert jobs.keys() == set()


def test_last_to_leave_calls_off() -> None:
    """A job that nobody wants any more ends; the next of its key waits for that end and runs anew."""
    jobs, log = Jobs(), list[str]()
    with jobs.join("k", lambda: Count(threading.Event(), log), patience()) as (job, _):
        pass
    gate = threading.Event()
    gate.set()
    with jobs.join("k", lambda: Count(gate, log), patience()) as (after, mine):
        assert mine
        assert patience().wait(after.future) == 3
    assert isinstance(job.future.exception(), Cancelled)
    assert log == ["run", "release", "run", "release"]


@pytest.mark.parametrize(("error", "seen"), [(NotFound("x"), NotFound), (ValueError("x"), Internal)])
def test_failures_reach_all(error: Exception, seen: type[Exception]) -> None:
    """Everybody who waits hears of a failure; one that is no error of ours is Internal."""
    jobs, gate = Jobs(), threading.Event()
    gate.set()
    with jobs.join("k", lambda: Count(gate, [], error), patience()) as (job, _):
        for _ in range(2):
            with pytest.raises(seen, match="x"):
                patience().wait(job.future)


def test_all_done() -> None:
    """All must succeed, and the first failure is told without waiting for the rest."""
    jobs, opened, shut = Jobs(), threading.Event(), threading.Event()
    opened.set()
    with (
        jobs.join("a", lambda: Count(shut, []), patience()) as (slow, _),
        jobs.join("b", lambda: Count(opened, [], NotFound("b")), patience()) as (bad, _),
    ):
        with pytest.raises(NotFound):
            patience().wait(all_done([slow.future, bad.future]))
        assert not slow.future.done()
        shut.set()
        patience().wait(all_done([slow.future]))
    patience().wait(all_done([]))


def test_patience_ends() -> None:
    """A wait ends at the deadline or when it is called off, with the error for either."""
    jobs = Jobs()
    with jobs.join("k", lambda: Count(threading.Event(), []), patience()) as (job, _):
        with pytest.raises(DeadlineExceeded, match=r"test did not finish within 0\.05 s"):
            patience(0.05).wait(job.future)
        mine = patience()
        threading.Timer(0.05, mine.cancel).start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            mine.wait(job.future)
        assert time.monotonic() - began < 50
    with pytest.raises(DeadlineExceeded, match="outlasts"):
        patience(1.0).sleep(2.0)
    with pytest.raises(DeadlineExceeded):
        patience(0.05).acquire(Slots(0))


def test_failed_job_is_replaced() -> None:
    """A job that failed is not joined by the next who wants its key, though its first user still holds it."""
    jobs, gate = Jobs(), threading.Event()
    gate.set()
    wait = patience()
    with jobs.join("k", lambda: Count(gate, [], NotFound("x")), wait) as (first, _):
        with pytest.raises(NotFound):
            wait.wait(first.future)
        with jobs.join("k", lambda: Count(gate, []), wait) as (second, mine):
            assert mine
            assert wait.wait(second.future) == 1
    assert jobs.keys() == set()


def test_no_thread_for_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that gets no thread is told so, and the next of its key starts anew."""
    jobs, gate = Jobs(), threading.Event()
    gate.set()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def enter() -> None:
        with jobs.join("k", lambda: Count(gate, []), patience()):
            raise AssertionError("joined")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ResourceExhausted, match="new thread"):
            enter()

    assert jobs.keys() == set()
    with jobs.join("k", lambda: Count(gate, []), patience()) as (job, _):
        assert patience().wait(job.future) == 1
