"""Functions to be called when a deadline passes, by one thread for all of them.

A `threading.Timer` is a thread for each, and pulls have one deadline or more for every request to a registry.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from image_svc import threads

logger = logging.getLogger(__name__)


class Alarms:
    """The deadlines that are waited for; the thread begins with the first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[object, tuple[float, Callable[[], object]]] = {}
        #: When the thread wakes up by itself.
        self._next = math.inf
        self._thread: threading.Thread | None = None

    @contextmanager
    def at(self, when: float, act: Callable[[], object]) -> Iterator[None]:
        """Have `act` called at a time of `time.monotonic()`, unless the block has ended before; it must not block.

        ResourceExhausted if the thread, before the first block of all, cannot be started.
        """
        key = object()
        with self._changed:
            if self._thread is None:
                self._thread = threads.start(self._run, "alarms")
            self._due[key] = when, act
            if when < self._next:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._due.pop(key, None)

    def _run(self) -> None:
        while True:
            for act in self._ripe():
                try:
                    act()
                except Exception:  # others wait for this thread
                    logger.exception("what a deadline was to end goes on")

    def _ripe(self) -> list[Callable[[], object]]:
        """Wait until a deadline has passed or another one came; return what is to be called."""
        with self._changed:
            now = time.monotonic()
            passed = [key for key, (when, _) in self._due.items() if when <= now]
            if passed:
                return [self._due.pop(key)[1] for key in passed]
            self._next = min((when for when, _ in self._due.values()), default=math.inf)
            self._changed.wait(min(self._next - now, threading.TIMEOUT_MAX))
            self._next = -math.inf  # it looks at all of them before it waits again
            return []


#: Those of this process.
ALARMS = Alarms()
