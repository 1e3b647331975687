"""Writes to disk while a pull still works what the last step would else have to wait for."""

import logging
import threading
from collections.abc import Callable

from bulkhead.errors import BulkheadError

logger = logging.getLogger(__name__)


class Writeback:
    """Syncs in the background when asked to; a request while one is under way is one more after it."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._lock = threading.Lock()
        self._running = self._again = False

    def kick(self) -> None:
        """Ask for a sync soon; nothing is told of it, since what must be durable is synced by whoever says so."""
        with self._lock:
            self._again = True
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, name="writeback", daemon=True).start()
        except RuntimeError:  # as many threads as there may be
            with self._lock:
                self._running = False

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._again:
                    self._running = False
                    return
                self._again = False
            try:
                self._sync()
            except BulkheadError as error:
                logger.debug("sync in the background: %s", error)
