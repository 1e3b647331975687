"""What a deadline is to end is ended, in its turn, unless it has ended before."""

import threading
import time

from image_svc.alarms import Alarms
from image_svc.patience import Patience


def test_in_the_order_of_their_deadlines() -> None:
    """One that is set later and is due sooner comes first; one that fails keeps nobody from being called."""
    alarms, called, done = Alarms(), list[int](), threading.Event()
    now = time.monotonic()

    def fail() -> None:
        called.append(1)
        raise ValueError

    def succeed() -> None:
        called.append(2)
        done.set()

    with alarms.at(now + 3600, done.set), alarms.at(now + 0.2, succeed), alarms.at(now + 0.1, fail):
        assert done.wait(60)

    assert called == [1, 2]


def test_a_block_that_ended_is_left_alone() -> None:
    """Nothing is called for a block that was over in time."""
    alarms, called, done = Alarms(), list[int](), threading.Event()
    soon = time.monotonic() + 0.1
    with alarms.at(soon, lambda: called.append(1)):
        pass
    with alarms.at(soon + 0.1, done.set):
        assert done.wait(60)

    assert called == []


def test_a_bounded_block_is_woken() -> None:
    """Patience wakes a block at its deadline and when it is called off."""
    for patience in (Patience(0.05, "pull"), Patience(3600.0, "pull")):
        woken = threading.Event()
        with patience.bounded(woken.set):
            if patience.left > 60:
                patience.cancel()
            assert woken.wait(60)
