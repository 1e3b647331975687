"""The snapshotters that containers of this node may ask for by name: Bulkhead's own and proxies."""

import logging
import threading
from pathlib import Path

from bulkhead.errors import InvalidArgument
from image_svc.oci.reference import Reference
from image_svc.proxied import Proxies, Proxy
from image_svc.proxied.layers import ProxiedLayerPuller, ProxiedLayers
from image_svc.proxied.snapshotter import Proxied
from image_svc.pulling.metadata import Found
from image_svc.snapshots import OWN, Prepared, Snapshotter, open_snapshotter
from image_svc.store import Snapshot, Store
from image_svc.unpack.client import UnpackClient

logger = logging.getLogger(__name__)


class Snapshotters:
    """Opens each snapshotter when it is first asked for; "" is the configured one."""

    def __init__(self, default: str, root: Path, client: UnpackClient, store: Store, proxies: Proxies) -> None:
        self._default = default
        self._root = root
        self._client = client
        self._store = store
        self._proxies = proxies
        self._lock = threading.Lock()
        self._open: dict[str, Snapshotter] = {}

    def name(self, name: str) -> str:
        """Return what a name stands for."""
        return name or self._default

    @property
    def default_proxy(self) -> str:
        """The configured snapshotter if it is a proxy, "" if it is one of Bulkhead's own."""
        return self._default if self._proxies.get(self._default) is not None else ""

    def get(self, name: str = "") -> Snapshotter:
        """Return the snapshotter of that name; InvalidArgument, listing those there are, for a name not known."""
        wanted = self.name(name)
        with self._lock:
            if wanted not in self._open:
                self._open[wanted] = self._opened(wanted)
            return self._open[wanted]

    def proxy(self, name: str) -> Proxy | None:
        """Return a proxy snapshotter; None for one of Bulkhead's own."""
        return self._proxies.get(self.name(name))

    def elsewhere(
        self, puller: ProxiedLayerPuller, snapshotter: str, name: Reference, found: Found
    ) -> ProxiedLayers | None:
        """Return what pulls an image's layers into a snapshotter; None for Bulkhead's own, which share their layers."""
        self.get(snapshotter)
        return puller.into(self.name(snapshotter), name, found)

    def prepare(self, snapshot: Snapshot) -> Prepared:
        """Make a container's snapshot, or return the plan of the one that is there; its layers must be there."""
        if self._proxies.get(snapshot.snapshotter) is not None:
            chain = [snapshot.chain_id] if snapshot.chain_id else []
            return self.get(snapshot.snapshotter).prepare(snapshot.key, chain)
        names = [str(layer.name) for layer in self._store.chain(snapshot.chain_id) or ()]
        return self.get(snapshot.snapshotter).prepare(str(snapshot.name), names)

    def remove(self, snapshot: Snapshot) -> None:
        """Drop a container's snapshot; one that is gone is success.

        One in a snapshotter that the configuration does not have any more is left there.
        """
        proxied = self._proxies.get(snapshot.snapshotter) is not None
        if not proxied and snapshot.snapshotter not in OWN:
            where = f"snapshotter {snapshot.snapshotter}, which is not configured any more"
            logger.warning("snapshot %s is left in %s", snapshot.key, where)
            return
        self.get(snapshot.snapshotter).remove(snapshot.key if proxied else str(snapshot.name))

    def _opened(self, name: str) -> Snapshotter:
        proxy = self._proxies.get(name)
        if proxy is not None:
            proxy.require_root()
            return Proxied(proxy)
        if name not in OWN:
            known = ", ".join((*OWN, *sorted(each.name for each in self._proxies.all())))
            raise InvalidArgument(f"snapshotter {name!r} is not known; there are {known}")
        return open_snapshotter(name, self._root, self._client)
