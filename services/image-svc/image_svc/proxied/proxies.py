"""The proxy snapshotters of this node, and who works on which of their layers."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bulkhead.config.model import ProxyPlugin
from image_svc.patience import Patience
from image_svc.proxied.client import Proxy


class Proxies:
    """Every configured one, by name; each is connected to when it is first called."""

    def __init__(self, plugins: Mapping[str, ProxyPlugin]) -> None:
        self._proxies = {
            name: Proxy(name, plugin.address, plugin.root) for name, plugin in plugins.items() if plugin.snapshotter
        }
        self._lock = threading.Lock()
        self._busy: set[tuple[str, str]] = set()

    def get(self, name: str) -> Proxy | None:
        """Return the one of that name."""
        return self._proxies.get(name)

    def all(self) -> list[Proxy]:
        """Return all of them."""
        return list(self._proxies.values())

    def close(self) -> None:
        """Close every connection."""
        for proxy in self._proxies.values():
            proxy.close()

    @contextmanager
    def working(self, snapshotter: str, chain_id: str, patience: Patience) -> Iterator[None]:
        """Be the only one to make or remove a layer during the block; waits for whoever else does."""
        while not self._take((snapshotter, chain_id)):
            patience.sleep(0.05)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard((snapshotter, chain_id))

    @contextmanager
    def unless_busy(self, snapshotter: str, chain_id: str) -> Iterator[bool]:
        """Be the only one during the block, if nobody works on that layer; yields whether that is so."""
        if not self._take((snapshotter, chain_id)):
            yield False
            return
        try:
            yield True
        finally:
            with self._lock:
                self._busy.discard((snapshotter, chain_id))

    def _take(self, key: tuple[str, str]) -> bool:
        with self._lock:
            if key in self._busy:
                return False
            self._busy.add(key)
            return True
