"""Garbage in proxy snapshotters: layers that nothing needs any more, and what an earlier process was unpacking."""

import logging
from collections.abc import Callable
from functools import partial

from bulkhead.errors import BulkheadError, FailedPrecondition
from image_svc import telemetry
from image_svc.leases import Leases
from image_svc.proxied.client import Proxy
from image_svc.proxied.extract import left_over
from image_svc.proxied.proxies import Proxies
from image_svc.store import Store

logger = logging.getLogger(__name__)


class ProxiedGarbage:
    """Collects there; what fails is tried again at the next collection."""

    def __init__(self, store: Store, leases: Leases, proxies: Proxies) -> None:
        self._store = store
        self._leases = leases
        self._proxies = proxies
        #: Snapshotters that hold nothing of an earlier process any more.
        self._tidy: set[str] = set()

    def collect(self) -> None:
        """Remove what can be removed, each layer before the one beneath it."""
        gone: set[str] = set()
        for proxy in self._proxies.all():
            if proxy.name not in self._tidy and not self._try(proxy.name, partial(self._clear, proxy)):
                gone.add(proxy.name)
        for snapshotter, chain_id in self._store.unused_proxied():
            found = self._proxies.get(snapshotter)
            if found is None:
                logger.warning("snapshotter %s is not configured any more: its layers are left to it", snapshotter)
                self._store.remove_proxied(snapshotter, chain_id)
            elif snapshotter not in gone and not self._try(snapshotter, partial(self._remove, found, chain_id)):
                gone.add(snapshotter)
        for proxy in self._proxies.all():
            if proxy.name not in gone:
                self._try(proxy.name, proxy.clean)

    def _try(self, snapshotter: str, act: Callable[[], None]) -> bool:
        """Do something in a snapshotter; False, told in the log, if it cannot be done now."""
        try:
            act()
        except BulkheadError as error:
            logger.warning("collection in snapshotter %s is put off: %s", snapshotter, error)
            return False
        return True

    def _clear(self, proxy: Proxy) -> None:
        for key in proxy.unfinished():
            if left_over(key):
                proxy.remove(key)
                telemetry.REMOVED.labels("snapshot").inc()
        self._tidy.add(proxy.name)

    def _remove(self, proxy: Proxy, chain_id: str) -> None:
        with self._proxies.unless_busy(proxy.name, chain_id) as mine:
            if not mine or not self._leases.unless_claimed(chain_id, lambda: self._unused(proxy.name, chain_id)):
                return
            # A pull that claims it from here on waits until it is gone, and has it made again.
            try:
                proxy.remove(chain_id)
            except FailedPrecondition as error:
                logger.info("layer %s stays in snapshotter %s: %s", chain_id, proxy.name, error)
                return
            self._store.remove_proxied(proxy.name, chain_id)
            telemetry.REMOVED.labels("layer").inc()

    def _unused(self, snapshotter: str, chain_id: str) -> bool:
        """Look once more: an image may have come to need it since the list was made."""
        return (snapshotter, chain_id) in self._store.unused_proxied()
