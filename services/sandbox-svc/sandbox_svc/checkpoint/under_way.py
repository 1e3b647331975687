"""Which containers are being checkpointed, and are therefore frozen by us."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bulkhead.errors import FailedPrecondition


class UnderWay:
    """The checkpoints that are being made: one of a container at a time."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._idents: set[str] = set()
        self._frozen: set[str] = set()

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
                self._idents.discard(ident)

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
                self._lock.notify_all()

    def wait_thawed(self, ident: str, timeout: float) -> None:
        """Wait until a container is not frozen by us, or for timeout seconds."""
        with self._lock:
            self._lock.wait_for(lambda: ident not in self._frozen, timeout)
