"""Snapshots: a stack of layers made into a root file system, as a plan of mounts.

Names are those of `image_svc.unpack.protocol`: decimal numbers that the store hands out, one for each layer directory
and one for each container. Nothing is mounted here; whoever starts the container carries the plan out.
"""

from pathlib import Path

from bulkhead.errors import InvalidArgument
from image_svc.snapshots.base import Mount, Prepared, Snapshotter
from image_svc.snapshots.native import Native
from image_svc.snapshots.overlayfs import Overlayfs
from image_svc.unpack.client import UnpackClient

__all__ = ["OWN", "Mount", "Prepared", "Snapshotter", "open_snapshotter"]

#: The snapshotters that Bulkhead has itself. They share the unpacked layers.
OWN = ("overlayfs", "native")


def open_snapshotter(name: str, root: Path, client: UnpackClient) -> Snapshotter:
    """Return the snapshotter the configuration names, for snapshots below `<root>/snapshots`.

    An unknown name is InvalidArgument.
    """
    if name == "overlayfs":
        return Overlayfs(root / "snapshots", client)
    if name == "native":
        return Native(root / "snapshots", client)
    raise InvalidArgument(f"snapshotter {name!r} is not known; there are overlayfs and native")
