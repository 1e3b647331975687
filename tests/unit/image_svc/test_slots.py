"""Slots are given in turn, and none is lost."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import Cancelled
from image_svc.patience import Patience
from image_svc.slots import Slots


def test_first_come_first_served() -> None:
    """Those who wait get a slot in the order in which they asked."""
    slots = Slots(1)
    held, second, third = (slots.ask() for _ in range(3))
    assert [turn.done() for turn in (held, second, third)] == [True, False, False]

    slots.release()
    assert [turn.done() for turn in (second, third)] == [True, False]
    slots.release()
    assert third.done()


@given(st.integers(1, 3), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_no_slot_is_lost_or_made(count: int, steps: list[tuple[bool, int]]) -> None:
    """Whoever asks, gives up or releases, as many hold a slot as there are, or all who want one."""
    slots = Slots(count)
    turns: list[Future[None]] = []
    for asks, which in steps:
        if asks or not turns:
            turns.append(slots.ask())
        else:
            slots.give_up(turns.pop(which % len(turns)))
        assert [turn.done() for turn in turns] == [True] * min(count, len(turns)) + [False] * max(len(turns) - count, 0)


def test_a_wait_that_is_called_off_takes_nothing() -> None:
    """Whoever is cancelled while waiting is told at once, and the slot goes to others."""
    slots, patience = Slots(1), Patience(60.0, "pull")
    slots.ask()
    waiting = threading.Event()

    def acquire() -> None:
        waiting.set()
        patience.acquire(slots)

    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(acquire)
        assert waiting.wait(60)
        patience.cancel()
        with pytest.raises(Cancelled):
            called.result(timeout=60)
    slots.release()
    assert slots.ask().done()
