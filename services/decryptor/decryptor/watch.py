"""Keys are read anew when their files have changed: a second at most after a Secret's links were swapped.

Looked at, not listened to: inotify sees neither what a link leads to nor that another file system was mounted here.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bulkhead.metrics import ERRORS
from decryptor import files

logger = logging.getLogger(__name__)

#: Seconds between looks; a look is one stat a key.
INTERVAL = 1.0
#: Seconds after which a directory that has become empty is looked at again: a fresh copy is moved into its place.
_SETTLE = 0.2


class Watch:
    """Calls `changed` when the key files did, or at SIGHUP, which must be blocked in every thread.

    Ends the process when `alive` says that its helper is gone: only a new one has a new helper.
    """

    def __init__(
        self, places: list[tuple[Path, str]], changed: Callable[[], None], alive: Callable[[], bool] = lambda: True
    ) -> None:
        self._places, self._changed, self._alive = places, changed, alive
        self._seen = files.signature(places)

    def start(self) -> None:
        """Look from now on, in a thread."""
        threading.Thread(target=self._run, name="keys", daemon=True).start()

    def look(self) -> bool:
        """Look once; whether anything had changed."""
        now = files.signature(self._places)
        if now == self._seen:
            return False
        if not now:
            time.sleep(_SETTLE)
            now = files.signature(self._places)
        self._seen = now
        self._changed()
        return True

    def _run(self) -> None:
        while True:
            asked = signal.sigtimedwait([signal.SIGHUP], INTERVAL)
            if not self._alive():
                logger.critical("the helper is gone: the decryptor ends, to be started with a new one")
                os._exit(1)
            try:
                if asked:
                    logger.info("SIGHUP: the keys are read anew")
                    self._seen = files.signature(self._places)
                    self._changed()
                else:
                    self.look()
            except Exception:
                ERRORS.labels("decryptor.watch").inc()
                logger.exception("the keys could not be read anew; those read before stay")
