"""Few threads move bytes at a time, and nobody waits for them beyond its own patience."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from bulkhead.errors import Cancelled, DeadlineExceeded
from image_svc.patience import Patience
from image_svc.pulling.movers import AT_ONCE, moving


def test_no_more_than_that_at_a_time() -> None:
    """However many threads want to move bytes, only so many do, and all of them come to it."""
    lock = threading.Lock()
    there, most, moved = 0, 0, 0

    def move(number: int) -> None:
        nonlocal there, most, moved
        for _ in range(20):
            with moving(Patience(60.0, "test"), "test"):
                with lock:
                    there += 1
                    most = max(most, there)
                time.sleep(0.0005)
                with lock:
                    there -= 1
                    moved += 1

    with ThreadPoolExecutor(AT_ONCE + 4) as pool:
        list(pool.map(move, range(AT_ONCE + 4)))
    assert moved == 20 * (AT_ONCE + 4)
    assert most == AT_ONCE


def test_a_turn_comes_back_from_one_that_fails() -> None:
    """What goes wrong while bytes are moved takes no turn along."""
    for _ in range(AT_ONCE + 1):
        with pytest.raises(OSError, match="disk"), moving(Patience(5.0, "test"), "test"):
            raise OSError("disk")
    with moving(Patience(5.0, "test"), "test"):
        pass


def test_turns_that_never_come_back() -> None:
    """Whoever waits in vain is told so when its own time is over, and another one why it was called off."""
    with ExitStack() as held:
        for _ in range(AT_ONCE):
            held.enter_context(moving(Patience(5.0, "other"), "other"))
        late = Patience(0.05, "layer")
        with pytest.raises(DeadlineExceeded, match="layer x: the disk takes nothing"), moving(late, "layer x"):
            pass
        off = Patience(0.05, "layer")
        off.cancel()
        with pytest.raises(Cancelled), moving(off, "layer x"):
            pass
