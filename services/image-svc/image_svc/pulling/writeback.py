"""Has everything on disk before anything is recorded.

Most of it is there already, or on its way: downloads and unpackers send large files' pieces to the disk as they write
them. Syncing while layers are still unpacked costs more than it saves: a journal's commit holds up who makes files.
"""

import logging
import math
import os
import threading
import time
from concurrent.futures import Future

from bulkhead.errors import Aborted, BulkheadError, Internal, ResourceExhausted
from image_svc import telemetry, threads
from image_svc.ingest import Content
from image_svc.patience import Patience
from image_svc.unpack.client import UnpackClient, UnpackerGone

logger = logging.getLogger(__name__)


class Writeback:
    """Syncs the file systems of blobs and snapshots, one round at a time, each for all who asked before it began."""

    def __init__(self, content: Content, client: UnpackClient) -> None:
        self._content = content
        self._client = client
        self._lock = threading.Lock()
        self._running = False
        #: The round that has not begun, if anybody asked for one.
        self._next: Future[None] | None = None
        #: When a round ended last that the disk failed, and how.
        self._lost_at, self._loss = -math.inf, BulkheadError("")

    def wait(self, patience: Patience, since: float) -> None:
        """Return once all that was written before is on disk, from a time of `time.monotonic()` on.

        Raises what the disk said, also in another round since: it says once what it could not write, and is content
        after that. Aborted and UnpackerGone stand for a helper that was killed meanwhile; and as the patience does,
        which leaves behind a thread that waits for a disk that hangs.
        """
        patience.wait(self._ask())
        with self._lock:
            if self._lost_at >= since:
                raise type(self._loss)(str(self._loss))

    def _ask(self) -> "Future[None]":
        with self._lock:
            if self._next is None:
                self._next = Future()
            asked = self._next
            if self._running:
                return asked
            self._running = True
        try:
            threads.start(self._run, "writeback")
        except ResourceExhausted as error:
            with self._lock:
                self._running, self._next = False, None
            asked.set_exception(error)
        return asked

    def _run(self) -> None:
        while True:
            with self._lock:
                turn, self._next = self._next, None
                if turn is None:
                    self._running = False
                    return
            try:
                self._sync()
            except BulkheadError as error:
                logger.debug("sync: %s", error)
                self._fail(turn, error)
            except Exception as error:  # somebody waits
                logger.exception("sync failed")
                self._fail(turn, Internal(f"sync: {type(error).__name__}: {error}"))
            else:
                turn.set_result(None)

    def _fail(self, turn: "Future[None]", error: BulkheadError) -> None:
        if not isinstance(error, Aborted | UnpackerGone):
            with self._lock:
                self._lost_at, self._loss = time.monotonic(), error
        turn.set_exception(error)

    def _sync(self) -> None:
        """Sync the blobs' file system, and have the helper sync its own unless that is the same."""
        try:
            self._content.sync()
            apart = self._apart()
        except OSError as error:
            raise telemetry.disk_failure("sync", error) from error
        if apart:
            self._client.sync()

    def _apart(self) -> bool:
        root = self._content.root
        try:
            return os.stat(root / "snapshots").st_dev != os.stat(root).st_dev
        except FileNotFoundError:
            return True
