"""The snapshotters that containers of this node may ask for by name."""

import threading
from pathlib import Path

from image_svc.snapshots import Snapshotter, open_snapshotter
from image_svc.unpack.client import UnpackClient


class Snapshotters:
    """Opens each snapshotter when it is first asked for."""

    def __init__(self, default: str, root: Path, client: UnpackClient) -> None:
        self._default = default
        self._root = root
        self._client = client
        self._lock = threading.Lock()
        self._open: dict[str, Snapshotter] = {}

    def get(self, name: str = "") -> Snapshotter:
        """Return the snapshotter of that name, or the configured one; InvalidArgument for a name not known."""
        wanted = name or self._default
        with self._lock:
            if wanted not in self._open:
                self._open[wanted] = open_snapshotter(wanted, self._root, self._client)
            return self._open[wanted]
