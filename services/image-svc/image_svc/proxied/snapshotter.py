"""A proxy snapshotter as the snapshotter of containers."""

from collections.abc import Sequence

from bulkhead.errors import AlreadyExists, FailedPrecondition, NotFound
from image_svc.proxied import mounts
from image_svc.proxied.client import Proxy
from image_svc.snapshots.base import Prepared


class Proxied:
    """Prepares containers' snapshots there; layers go by their chain ids, snapshots by any key."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.name = proxy.name

    def prepare(self, name: str, chain: Sequence[str]) -> Prepared:
        """Make the writable snapshot on top of the chain, or return the mounts of the one that is there."""
        try:
            found = self._proxy.prepare(name, _top(chain), {})
        except AlreadyExists:
            found = self._proxy.mounts(name)
        except NotFound as error:
            raise FailedPrecondition(f"{error}: a layer is missing there; pull the image again") from error
        return mounts.prepared(found, self.name)

    def view(self, name: str, chain: Sequence[str]) -> Prepared:
        """Make a read-only snapshot."""
        return mounts.prepared(self._proxy.view(name, _top(chain)), self.name)

    def remove(self, name: str) -> None:
        """Drop a snapshot; nothing by that name is success."""
        self._proxy.remove(name)


def _top(chain: Sequence[str]) -> str:
    return chain[-1] if chain else ""
