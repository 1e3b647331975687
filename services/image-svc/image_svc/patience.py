"""How long an operation may go on: a deadline and a way to call it off from another thread."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from bulkhead.errors import Cancelled, DeadlineExceeded
from image_svc.alarms import ALARMS
from image_svc.slots import Slots

T = TypeVar("T")


class Patience:
    """The time one operation has left, and whether anybody still wants its result.

    Threads that block in a system call register a way to be woken (`interruptible`).
    """

    def __init__(self, seconds: float, what: str) -> None:
        self._until = time.monotonic() + seconds
        self._seconds = seconds
        self._what = what
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        #: By block, since two may be woken in one way.
        self._wakers: dict[object, Callable[[], object]] = {}

    def cancel(self) -> None:
        """Call the operation off and wake its blocked threads; a second call does nothing."""
        with self._lock:
            if self._cancelled.is_set():
                return
            self._cancelled.set()
            wakers = list(self._wakers.values())
        for wake in wakers:
            wake()

    @property
    def cancelled(self) -> bool:
        """Whether it was called off."""
        return self._cancelled.is_set()

    @property
    def left(self) -> float:
        """Seconds until the deadline, never below 0."""
        return max(self._until - time.monotonic(), 0.0)

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded if there is no point in going on."""
        if self._cancelled.is_set():
            raise Cancelled(f"{self._what} was cancelled")
        if self.left <= 0:
            raise DeadlineExceeded(f"{self._what} did not finish within {self._seconds:g} s")

    def sleep(self, seconds: float) -> None:
        """Wait, and raise as `check` does if it was called off meanwhile or the wait outlasts the deadline."""
        self.check()
        if seconds >= self.left:
            raise DeadlineExceeded(f"{self._what}: a wait of {seconds:.0f} s outlasts its limit of {self._seconds:g} s")
        self._cancelled.wait(seconds)
        self.check()

    def wait(self, future: Future[T]) -> T:
        """Return what another thread comes up with, or raise as `check` does, whichever is first."""
        wake = threading.Event()
        future.add_done_callback(lambda _: wake.set())
        with self.interruptible(wake.set):
            wake.wait(self.left)
        if not future.done():
            self.check()
        return future.result(timeout=0)

    def acquire(self, slots: Slots) -> None:
        """Take a slot, or raise as `check` does."""
        turn = slots.ask()
        try:
            self.wait(turn)
        except BaseException:
            slots.give_up(turn)
            raise

    @contextmanager
    def interruptible(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have `wake` called, from another thread, if the operation is called off during the block."""
        key = object()
        with self._lock:
            self._wakers[key] = wake
        try:
            self.check()
            yield
        finally:
            with self._lock:
                del self._wakers[key]

    @contextmanager
    def bounded(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have `wake` called if the operation is called off during the block, or its deadline passes."""
        with ALARMS.at(self._until, wake), self.interruptible(wake):
            yield
