"""Operations pass side by side; a plugin is told of all pods and containers while none is under way."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from bulkhead.errors import DeadlineExceeded

logger = logging.getLogger(__name__)


class Gate:
    """A lock that is shared by operations and taken alone for a synchronization, which new operations wait for.

    A thread that is in an operation may enter another without waiting.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._waiting = 0
        self._mine = threading.local()

    @property
    def closed(self) -> bool:
        """Whether a synchronization is under way or waits for the operations under way."""
        return self._alone or self._waiting > 0

    @contextlib.contextmanager
    def operation(self, timeout: float, *, anyway: bool = False) -> Iterator[None]:
        """Hold synchronizations off; one that has not ended within `timeout` seconds is DeadlineExceeded.

        With `anyway` the block is run then all the same, beside the synchronization, and so is what it enters.
        """
        depth: int = getattr(self._mine, "depth", 0)
        entered = False
        if not depth:
            try:
                self._enter(timeout)
                entered = True
            except DeadlineExceeded as error:
                if not anyway:
                    raise
                logger.error("NRI: %s; what cannot wait goes on beside it", error)
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            if entered:
                with self._changed:
                    self._inside -= 1
                    if not self._inside:
                        self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self, timeout: float) -> Iterator[None]:
        """Hold operations off; DeadlineExceeded if those under way have not ended within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._waiting += 1
            try:
                while self._alone or self._inside:
                    self._wait(deadline, f"{self._inside} operations did not end within {timeout:g} s")
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _enter(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._alone or self._waiting:
                self._wait(deadline, f"the synchronization of an NRI plugin did not end within {timeout:g} s")
            self._inside += 1

    def _wait(self, deadline: float, complaint: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(complaint)
        self._changed.wait(left)
