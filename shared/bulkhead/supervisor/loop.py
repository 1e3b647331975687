"""One thread, one wait: descriptors, signals and times. Nothing here knows what a service is."""

import heapq
import itertools
import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable

logger = logging.getLogger("bulkhead.supervisor")


class Loop:
    """Calls back when a descriptor is readable, a time has come or a signal has arrived."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._signals: dict[int, Callable[[], None]] = {}
        self.stopped = False

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever the descriptor is readable or at its end."""
        self._selector.register(fd, selectors.EVENT_READ, ready)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor; before it is closed."""
        self._selector.unregister(fd)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` once, that many seconds from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))

    def on_signals(self, handlers: dict[int, Callable[[], None]]) -> None:
        """Call a handler from the loop for each arrival of its signal."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self._signals = handlers
        for number in handlers:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._kept = (ours, theirs)
        self.watch(ours.fileno(), lambda: self._dispatch(ours.recv(64)))

    def run(self) -> None:
        """Wait and call back until `stopped` is set."""
        while not self.stopped:
            self.turn(self._until_next())

    def turn(self, timeout: float | None) -> None:
        """Wait once, at most that many seconds, and call back what is due."""
        for key, _ in self._selector.select(timeout):
            _guarded(key.data)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _guarded(heapq.heappop(self._timers)[2])

    def _until_next(self) -> float | None:
        return max(self._timers[0][0] - time.monotonic(), 0.0) if self._timers else None

    def _dispatch(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if handler := self._signals.get(number):
                handler()


def _guarded(action: Callable[[], None]) -> None:
    """Call back; an error of ours is logged and does not take every service with it."""
    try:
        action()
    except Exception:
        logger.exception("a callback of the supervisor failed")
