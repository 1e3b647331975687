"""The start after a stop or a crash: records, blobs and directories are made to agree before directories are used."""

import logging
import threading
from concurrent.futures import Future

from bulkhead.errors import BulkheadError, Unavailable
from image_svc import telemetry
from image_svc.ingest import Content
from image_svc.patience import Patience
from image_svc.store import Store
from image_svc.unpack.client import UnpackClient

logger = logging.getLogger(__name__)

#: Seconds between attempts while the unpack helper is not there.
PERIOD = 0.5


class Recovery:
    """Clears away what a crash left; pulls and containers wait for it, lists do not."""

    def __init__(self, store: Store, content: Content, client: UnpackClient) -> None:
        self._store = store
        self._content = content
        self._client = client
        self._done: Future[None] = Future()
        self._stopped = threading.Event()
        self._why = "it was not asked yet"

    def blobs(self) -> None:
        """Make records and blobs agree; nothing else may run yet."""
        recorded = self._store.blobs()
        for digest in set(self._content.digests()) - recorded:
            # A pull had fetched it and did not come to its end; the next one need not fetch it again.
            self._content.give_back(digest)
        self._store.remove_blobs([digest for digest in recorded if not self._content.has(digest)])
        # Such an image can neither be run nor described; once it is not listed, the kubelet pulls it again.
        lost = [row for row in self._store.image_rows() if not self._content.has(row[0])]
        self._store.remove_names(row[-1] for row in lost)
        for image_id in sorted({row[0] for row in lost}):
            logger.error("image %s has lost its configuration and must be pulled again", image_id)

    def run(self) -> None:
        """Make records and directories agree as soon as the unpack helper is there; returns when that is done."""
        while not self._stopped.is_set():
            try:
                self.directories()
            except Exception as error:  # nothing can be pulled or run until this has succeeded
                if not isinstance(error, BulkheadError):
                    logger.exception("clearing away what the last run left failed")
                self._why = str(error)
                self._stopped.wait(PERIOD)
            else:
                self._done.set_result(None)
                return

    def stop(self) -> None:
        """Give up waiting for the helper."""
        self._stopped.set()

    def wait(self, patience: Patience) -> None:
        """Return when directories may be used; Unavailable if the helper does not come in time."""
        if self._done.done():
            return
        try:
            patience.wait(self._done)
        except BulkheadError as error:
            if patience.cancelled:
                raise
            raise Unavailable(f"image-svc waits for its unpack helper: {self._why}") from error

    def directories(self) -> None:
        """Remove directories without a record; forget layers whose directory is not whole, and their images."""
        found = dict(self._client.list())
        self._store.begin_names_after(max(map(int, found), default=0))
        used = self._store.names_in_use()
        for name in found:
            if int(name) not in used:
                self._client.remove(name)
                telemetry.REMOVED.labels("snapshot").inc()
        whole = {int(name) for name, complete in found.items() if complete}
        for image_id in self._store.forget_lost_layers(set(self._store.layer_names()) - whole):
            logger.error("image %s has lost a layer and must be pulled again", image_id)
