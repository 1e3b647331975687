"""How much the writable layers of containers take, measured in the background."""

import logging
import threading

from bulkhead.errors import BulkheadError
from image_svc.proxied import Proxies
from image_svc.store import Snapshot, Store
from image_svc.unpack.client import UnpackClient, Usage

logger = logging.getLogger(__name__)


class ContainerUsage:
    """Walks the containers' snapshots every `period` seconds; answers are as old as that, never waited for."""

    def __init__(self, store: Store, client: UnpackClient, period: float, proxies: Proxies | None = None) -> None:
        self._store = store
        self._proxies = proxies or Proxies({})
        self._client = client
        self._period = max(period, 1.0)
        self._by_key: dict[str, Usage] = {}
        #: Snapshotters' names by key.
        self._where: dict[str, str] = {}
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

    def by_snapshotter(self) -> dict[str, Usage]:
        """Return the sums as last measured: of each proxy snapshotter by name, of Bulkhead's own under ""."""
        sums: dict[str, Usage] = {"": Usage(0, 0)}
        for key, usage in self._by_key.items():
            snapshotter = self._where.get(key, "")
            name = snapshotter if self._proxies.get(snapshotter) is not None else ""
            before = sums.get(name, Usage(0, 0))
            sums[name] = Usage(before.bytes + usage.bytes, before.inodes + usage.inodes)
        return sums

    def measure(self) -> None:
        """Walk every container's snapshot once; one that could not be counted keeps its last figures."""
        snapshots = self._store.snapshots()
        own = {str(each.name): each.key for each in snapshots if self._proxies.get(each.snapshotter) is None}
        measured = self._elsewhere(snapshots)
        try:
            measured |= {own[name]: usage for name, usage in self._client.usages(list(own)).items()}
        except BulkheadError as error:
            logger.debug("usage of containers: %s", error)
        keys = {each.key: each.snapshotter for each in snapshots}
        kept = {key: self._by_key[key] for key in keys if key in self._by_key}
        self._by_key, self._where = kept | measured, keys

    def _elsewhere(self, snapshots: list[Snapshot]) -> dict[str, Usage]:
        """Ask proxy snapshotters; one that fails to answer is not asked again this time."""
        found: dict[str, Usage] = {}
        silent: set[str] = set()
        for each in snapshots:
            proxy = self._proxies.get(each.snapshotter)
            if proxy is None or proxy.name in silent:
                continue
            try:
                found[each.key] = proxy.usage(each.key)
            except BulkheadError as error:
                silent.add(proxy.name)
                logger.debug("usage of containers: %s", error)
        return found

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            try:
                self.measure()
            except Exception:  # measured again a period later
                logger.exception("measuring containers' usage failed")
