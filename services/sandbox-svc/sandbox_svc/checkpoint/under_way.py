"""Which containers are being checkpointed, and are therefore frozen by us; a stop is stronger than a checkpoint.

A frozen container heeds no signal, and on cgroup version 1 not even SIGKILL.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bulkhead.errors import BulkheadError, FailedPrecondition

#: Seconds that a stop waits for a checkpoint to give way, and from one attempt to thaw to the next: the first may have
#: come before the dump began. A foreign shim thaws nothing during a dump; SIGKILL then goes its own way.
PATIENCE, _AGAIN = 15.0, 0.5

logger = logging.getLogger(__name__)


class UnderWay:
    """The checkpoints that are being made: one of a container at a time."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._idents: set[str] = set()
        self._frozen: set[str] = set()
        #: Those that are past their frozen part, and those that are to end.
        self._thawed: set[str] = set()
        self._ending: set[str] = set()

    def __contains__(self, ident: str) -> bool:
        with self._lock:
            return ident in self._idents

    @contextmanager
    def of(self, ident: str) -> Iterator[None]:
        """Hold a container's checkpoint; FailedPrecondition while there is another."""
        with self._lock:
            if ident in self._idents:
                raise FailedPrecondition(f"container {ident}: another checkpoint of it is being made")
            self._idents.add(ident)
        try:
            yield
        finally:
            with self._lock:
                for kept in (self._idents, self._thawed, self._ending):
                    kept.discard(ident)
                self._lock.notify_all()

    @contextmanager
    def frozen(self, ident: str) -> Iterator[None]:
        """Say that a container is frozen during the block."""
        with self._lock:
            self._frozen.add(ident)
        try:
            yield
        finally:
            with self._lock:
                self._frozen.discard(ident)
                if ident in self._idents:
                    self._thawed.add(ident)
                self._lock.notify_all()

    def wait_thawed(self, ident: str, timeout: float) -> None:
        """Wait until a container is not frozen by us, or for timeout seconds."""
        with self._lock:
            self._lock.wait_for(lambda: ident not in self._frozen, timeout)

    def check(self, ident: str) -> None:
        """Raise FailedPrecondition in a checkpoint that is to end, because its container does."""
        with self._lock:
            if ident in self._ending:
                raise FailedPrecondition(f"container {ident} is being stopped, which ends its checkpoint")

    def give_way(self, ident: str, thaw: Callable[[], object], patience: float = PATIENCE) -> None:
        """End a checkpoint that has its container frozen or is about to, and return when it is thawed.

        One that has all it needs of the container is let go on. `thaw` is called, again and again, until it is done.
        """
        with self._lock:
            if ident not in self._idents or ident in self._thawed:
                return
            self._ending.add(ident)
        self._until(lambda: ident not in self._idents or ident in self._thawed, ident, thaw, patience)

    def end(self, ident: str, patience: float = PATIENCE) -> None:
        """End a checkpoint whatever it is at, as its container is to be removed, and return when it is over."""
        with self._lock:
            if ident not in self._idents:
                return
            self._ending.add(ident)
        self._until(lambda: ident not in self._idents, ident, lambda: None, patience)

    def _until(self, over: Callable[[], bool], ident: str, step: Callable[[], object], patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                step()
            except BulkheadError as error:
                logger.debug("container %s is not thawed: %s", ident, error)  # not frozen yet, or no longer
            with self._lock:
                if self._lock.wait_for(over, _AGAIN):
                    return
            if time.monotonic() > deadline:
                logger.warning("container %s: its checkpoint does not end, and is not waited for any longer", ident)
                return
