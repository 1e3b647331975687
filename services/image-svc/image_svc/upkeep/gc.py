"""Garbage: what no image, container or pull needs goes away, in the background, never in a pull's way."""

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial

from bulkhead.errors import BulkheadError
from bulkhead.metrics import ERRORS
from image_svc import telemetry
from image_svc.ingest import Content
from image_svc.leases import Leases
from image_svc.snapshotters import Snapshotters
from image_svc.store import Snapshot, Store
from image_svc.unpack.client import UnpackClient

logger = logging.getLogger(__name__)

#: Seconds a partial download that nobody continues is kept for the next try.
PARTIAL_AGE = 24 * 3600.0
#: Seconds between collections that nothing asked for, and until one that failed is tried again.
PERIOD, AGAIN = 3600.0, 30.0


class Collector:
    """Collects when asked to (`kick`) and now and then; one collection at a time."""

    def __init__(
        self,
        store: Store,
        content: Content,
        client: UnpackClient,
        leases: Leases,
        *,
        discard_unpacked_layers: bool = False,
        elsewhere: Callable[[], None] = lambda: None,
    ) -> None:
        """`elsewhere` removes unused layers that are not among Bulkhead's own snapshots."""
        self._store = store
        self._content = content
        self._client = client
        self._leases = leases
        self._discard = discard_unpacked_layers
        self._elsewhere = elsewhere
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gc", daemon=True)

    def start(self) -> None:
        """Begin to collect in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way."""
        self._stopped.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def kick(self) -> None:
        """Ask for a collection soon."""
        self._wanted.set()

    def _run(self) -> None:
        pause = PERIOD
        while not self._stopped.is_set():
            self._wanted.wait(pause)
            self._wanted.clear()
            pause = PERIOD
            if self._stopped.is_set():
                return
            try:
                self.collect()
            except Exception:  # the next collection finds what this one left
                ERRORS.labels("image_gc").inc()
                logger.exception("collection failed")
                pause = AGAIN

    def collect(self) -> None:
        """Remove unused layers, then unused blobs, then partial downloads that were given up long ago."""
        for layer in self._store.unused_layers():
            if self._stopped.is_set():
                return
            if self._leases.unless_claimed(layer.chain_id, partial(self._store.remove_unused_layer, layer.chain_id)):
                self._remove(str(layer.name), "layer")
        for digest in self._store.unused_blobs(discard_layers=self._discard):
            if self._stopped.is_set():
                return
            self._leases.unless_claimed(digest, partial(self._drop_blob, digest))
        self._collect_partials()
        self._store.reserve.keep()
        self._elsewhere()

    def _drop_blob(self, digest: str) -> bool:
        # Looked at once more: an image may have come to need it since the list was made.
        if not self._store.remove_unused_blob(digest, discard_layers=self._discard):
            return False
        self._content.remove(digest)
        telemetry.REMOVED.labels("blob").inc()
        return True

    def _collect_partials(self) -> None:
        for entry in self._content.partials():
            digest = entry.name.partition(".")[0].replace("-", ":", 1)
            try:
                old = time.time() - entry.stat().st_mtime > PARTIAL_AGE
            except FileNotFoundError:
                continue
            if old and self._leases.unless_claimed(digest, partial(_unlink, entry.path)):
                telemetry.REMOVED.labels("partial").inc()

    def _remove(self, name: str, kind: str) -> None:
        try:
            self._client.remove(name)
            telemetry.REMOVED.labels(kind).inc()
        except BulkheadError as error:
            logger.warning("%s directory %s is left to the next start: %s", kind, name, error)


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def remove_snapshot(store: Store, snapshotters: Snapshotters, snapshot: Snapshot) -> None:
    """Remove a container's snapshot: directory first, so that a crash leaves a record to act on."""
    snapshotters.remove(snapshot)
    store.remove_snapshot(snapshot.key)
