"""Longer work waits for the calls under way, and for none of them long."""

import threading
import time

import pytest

from bulkhead import courtesy
from bulkhead.courtesy import Courtesy
from bulkhead.pool import CallPool


def _patient(monkeypatch: pytest.MonkeyPatch, longest: float, brief: float) -> None:
    monkeypatch.setattr(courtesy, "_LONGEST", longest)
    monkeypatch.setattr(courtesy, "_BRIEF", brief)


def test_nobody_waits_without_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no call is under way, or none any more, whoever works goes on at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it slept"))
    calls = Courtesy()
    calls.step_aside()
    calls.end(calls.begin())
    calls.step_aside()


def test_whoever_works_waits_until_the_last_call_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several who stepped aside go on when the last of the calls has ended, and not before."""
    _patient(monkeypatch, 60.0, 60.0)
    calls, after = Courtesy(), list[str]()
    first, last = calls.begin(), calls.begin()

    def work() -> None:
        calls.step_aside()
        after.append("worked")

    waiting = [threading.Thread(target=work) for _ in range(3)]
    for thread in waiting:
        thread.start()
    calls.end(first)
    time.sleep(0.05)
    after.append("answered")
    calls.end(last)
    for thread in waiting:
        thread.join(60)

    assert after == ["answered", "worked", "worked", "worked"]


def test_a_call_that_does_not_end_is_waited_for_once_and_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that hangs holds nobody up for good: neither the first who waits nor those behind."""
    _patient(monkeypatch, 0.02, 60.0)
    calls = Courtesy()
    calls.begin()
    waiting = [threading.Thread(target=calls.step_aside) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(60)
    assert not any(thread.is_alive() for thread in waiting)


def test_a_call_that_is_not_brief_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has taken longer than a brief call waits for something itself; work goes on beside it, brief ones or not."""
    _patient(monkeypatch, 60.0, 0.05)
    calls = Courtesy()
    calls.begin()
    time.sleep(0.06)
    calls.end(calls.begin())
    assert not calls.waits
    thread = threading.Thread(target=calls.step_aside)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_a_pool_tells_of_its_calls() -> None:
    """A call counts from when it was handed over until it has ended, failed or been called off."""
    calls, gate = Courtesy(), threading.Event()
    pool = CallPool(1, "told", calls)
    running = pool.submit(gate.wait, 60)
    failing = pool.submit(int, "none")
    dropped = pool.submit(int)
    assert len(calls._begun) == 3

    assert dropped.cancel()
    assert len(calls._begun) == 2
    gate.set()
    running.result(60)
    with pytest.raises(ValueError, match="none"):
        failing.result(60)
    pool.shutdown()
    assert len(calls._begun) == 0


def test_a_pool_that_is_shut_down_tells_of_nothing() -> None:
    """A call that a pool does not take is none."""
    calls = Courtesy()
    pool = CallPool(1, "shut", calls)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(int)
    assert len(calls._begun) == 0
