"""Calls go first: threads with longer work to do let those be answered that came meanwhile.

Python's interpreter lock is had by whoever comes at the right moment. A call needs it four times, in two threads, and
beside twenty pulls there are some twenty threads that want it too, most of them a thousand times a second. Where a
thread can as well go on a little later it calls `step_aside`.
"""

import threading
import time

#: Seconds that a thread steps aside at most, and after which a call is not brief: nobody shall wait for its own waits.
_LONGEST, _BRIEF = 0.02, 0.05
#: Seconds after which the first of those who stepped aside looks again.
_LOOK = 0.001


class Courtesy:
    """Knows the calls under way, and has others wait for the brief ones among them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: When each call began, the latest at the end.
        self._begun: dict[object, float] = {}
        #: Whoever holds it looks; all others sleep behind it, without the interpreter's lock.
        self._first = threading.Lock()

    def begin(self) -> object:
        """Note that a call has come, and return what it is to be ended by."""
        call = object()
        with self._lock:
            self._begun[call] = time.monotonic()
        return call

    def end(self, call: object) -> None:
        """Note that a call has ended."""
        with self._lock:
            del self._begun[call]

    @property
    def waits(self) -> bool:
        """Whether a brief call is under way."""
        with self._lock:
            return bool(self._begun) and next(reversed(self._begun.values())) > time.monotonic() - _BRIEF

    def step_aside(self) -> None:
        """Return once no brief call is under way: at once if none is, and after 20 ms in any case.

        Not to be called by a call, nor with anything held that one might wait for.
        """
        if not self._begun:
            return
        until = time.monotonic() + _LONGEST
        if not self._first.acquire(timeout=_LONGEST):
            return
        try:
            while self.waits and time.monotonic() < until:
                time.sleep(_LOOK)
        finally:
            self._first.release()


#: The calls of this process.
calls = Courtesy()
step_aside = calls.step_aside
