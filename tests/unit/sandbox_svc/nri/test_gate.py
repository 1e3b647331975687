"""Synchronizations and operations: never both, and nobody waits for ever."""

import threading
import time

import pytest

from bulkhead.errors import DeadlineExceeded
from sandbox_svc.nri.gate import Gate


def test_operations_pass_side_by_side() -> None:
    """Two operations are inside at once."""
    gate, both = Gate(), threading.Barrier(2, timeout=60)

    def work() -> None:
        with gate.operation(5):
            both.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not both.broken


def test_a_synchronization_waits_for_operations_and_holds_new_ones_off() -> None:
    """It begins when the last operation ends; one that comes meanwhile begins after it."""
    gate, seen = Gate(), list[str]()
    waiting = threading.Event()

    def alone() -> None:
        with gate.alone(5):
            seen.append("alone")
            waiting.set()
            time.sleep(0.05)
            seen.append("done")

    def late() -> None:
        with gate.operation(5):
            seen.append("late")

    with gate.operation(5):
        synchronization = threading.Thread(target=alone)
        synchronization.start()
        while not gate._waiting:
            time.sleep(0.001)
        other = threading.Thread(target=late)
        other.start()
        with gate.operation(0.01):  # one inside another must not wait for what waits for it
            seen.append("inner")
    synchronization.join(60)
    other.join(60)

    assert seen == ["inner", "alone", "done", "late"]


def test_what_cannot_wait_goes_on() -> None:
    """With `anyway` a synchronization that does not end is waited for, and then no more."""
    gate, done = Gate(), list[str]()

    def work() -> None:
        with gate.operation(0.02, anyway=True):
            done.append("went on")

    with gate.alone(1):
        assert gate.closed
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    assert done == ["went on"]
    assert not gate.closed
    with gate.alone(0.1):
        pass


def test_what_cannot_wait_waits_once() -> None:
    """What goes on beside a synchronization waits no second time for the same one, however deep it enters."""
    gate, took = Gate(), list[float]()

    def work() -> None:
        began = time.monotonic()
        with gate.operation(0.1, anyway=True), gate.operation(5, anyway=True), gate.operation(5):
            took.append(time.monotonic() - began)

    with gate.alone(1):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    assert took
    assert took[0] < 4.9
    with gate.alone(0.1):
        pass


def test_waits_end() -> None:
    """Whoever is kept waiting longer than it allowed gets DEADLINE_EXCEEDED, and the gate works on."""
    gate = Gate()
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with gate.operation(1):
            inside.set()
            leave.wait(30)

    holder = threading.Thread(target=work)
    holder.start()
    inside.wait(30)
    with pytest.raises(DeadlineExceeded, match="1 operations did not end"), gate.alone(0.01):
        pass
    leave.set()
    holder.join(60)

    with gate.alone(1):
        outcome: list[str] = []

        def refused() -> None:
            try:
                with gate.operation(0.01):
                    pass
            except DeadlineExceeded as error:
                outcome.append(str(error))

        late = threading.Thread(target=refused)
        late.start()
        late.join(60)
    assert "synchronization" in outcome[0]
    with gate.operation(0.01):
        pass
