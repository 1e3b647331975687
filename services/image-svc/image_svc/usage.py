"""How much the writable layers of containers take, measured in the background."""

import logging
import threading

from bulkhead.errors import BulkheadError
from image_svc.store import Store
from image_svc.unpack.client import UnpackClient, Usage

logger = logging.getLogger(__name__)


class ContainerUsage:
    """Walks the containers' snapshots every `period` seconds; answers are as old as that, never waited for."""

    def __init__(self, store: Store, client: UnpackClient, period: float) -> None:
        self._store = store
        self._client = client
        self._period = max(period, 1.0)
        self._by_key: dict[str, Usage] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def start(self) -> None:
        """Begin to measure."""
        self._thread.start()

    def stop(self) -> None:
        """End after the walk under way."""
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def total(self) -> Usage:
        """Return the sum as last measured."""
        found = list(self._by_key.values())
        return Usage(sum(each.bytes for each in found), sum(each.inodes for each in found))

    def measure(self) -> None:
        """Walk every container's snapshot once; one that could not be counted keeps its last figures."""
        keys = {str(snapshot.name): snapshot.key for snapshot in self._store.snapshots()}
        try:
            found = self._client.usages(list(keys))
        except BulkheadError as error:
            logger.debug("usage of containers: %s", error)
            return
        measured = {keys[name]: usage for name, usage in found.items()}
        kept = {key: self._by_key[key] for key in keys.values() if key in self._by_key}
        self._by_key = kept | measured

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            try:
                self.measure()
            except Exception:  # measured again a period later
                logger.exception("measuring containers' usage failed")
