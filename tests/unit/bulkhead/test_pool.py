"""Calls get threads without the one who hands them over waiting for any."""

import threading

import pytest

from bulkhead.pool import CallPool


def test_submitting_waits_for_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever submits goes on before the thread has begun; on a busy machine that takes its time."""
    gate, start = threading.Event(), threading.Thread.start

    def late(self: threading.Thread) -> None:
        if self.name.startswith("late"):
            gate.wait(60)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", late)
    called = CallPool(2, "late").submit(threading.current_thread)
    assert not called.done()
    gate.set()

    assert called.result(60).name.startswith("late")


def test_as_many_threads_as_calls_and_no_more_than_allowed() -> None:
    """Calls that block run side by side up to the limit, and the rest after them."""
    together, pool = threading.Barrier(4), CallPool(4, "some")
    calls = [pool.submit(together.wait, 10) for _ in range(8)]

    assert sorted(call.result(60) for call in calls) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({thread for thread in threading.enumerate() if thread.name.startswith("some")}) == 4


def test_a_thread_that_could_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has as many threads as it may makes a call wait and loses none."""
    refused, start = list[str](), threading.Thread.start

    def refuse_once(self: threading.Thread) -> None:
        if self.name.startswith("scarce") and not refused:
            refused.append(self.name)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)

    assert CallPool(1, "scarce").submit(lambda: 1).result(60) == 1
    assert refused
