"""Calls go first: threads with longer work to do let those be answered that came meanwhile.

Python's interpreter lock is had by whoever comes at the right moment. A call needs it four times, in two threads, and
beside twenty pulls there are some twenty threads that want it too, most of them a thousand times a second. Where a
thread can as well go on a little later it calls `step_aside`.
"""

import threading
import time

#: Seconds that a thread steps aside at most; what a call is not brief after: others shall not wait for its own waits.
_LONGEST, _BRIEF = 0.02, 0.05
#: Seconds after which the first of those who stepped aside looks again.
_LOOK = 0.001


class Courtesy:
    """Counts the calls under way, and has others wait for the brief ones among them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._latest = 0.0
        #: Whoever holds it looks; all others sleep behind it, without the interpreter's lock.
        self._first = threading.Lock()

    def begin(self) -> None:
        """Note that a call has come."""
        with self._lock:
            self._calls += 1
            self._latest = time.monotonic()

    def end(self) -> None:
        """Note that one has ended."""
        with self._lock:
            self._calls -= 1

    def step_aside(self) -> None:
        """Return once no brief call is under way: at once if none is, and after 20 ms in any case.

        Not to be called with anything held that a call might wait for.
        """
        if not self._calls:
            return
        until = time.monotonic() + _LONGEST
        if not self._first.acquire(timeout=_LONGEST):
            return
        try:
            while self._calls and time.monotonic() < min(until, self._latest + _BRIEF):
                time.sleep(_LOOK)
        finally:
            self._first.release()


#: The calls of this process.
calls = Courtesy()
step_aside = calls.step_aside
