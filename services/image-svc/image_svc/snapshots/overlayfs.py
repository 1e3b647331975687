"""overlayfs: layers as lower directories, the container's writes in an upper one."""

import os
from collections.abc import Sequence
from pathlib import Path

from bulkhead.errors import InvalidArgument
from image_svc.snapshots.base import Mount, Prepared
from image_svc.unpack import protocol
from image_svc.unpack.client import UnpackClient

#: There since Linux 4.13; an index would tie an upper directory to one lower stack and forbid sharing layers.
INDEX_PARAMETER = "/sys/module/overlay/parameters/index"


class Overlayfs:
    """Plans overlay mounts over `<directory>/<name>/fs`.

    Paths in the options are absolute, as other mounters expect. About 80 layers fit into the 4096 bytes of
    mount(2); beyond that the mounter changes into the directory they share and shortens them, as containerd does.
    """

    name = "overlayfs"

    def __init__(self, directory: Path, client: UnpackClient, *, index_off: bool | None = None) -> None:
        """Plan for snapshots in `directory`; `index_off` None asks the kernel whether the option exists."""
        if set(":,\\") & set(str(directory)):
            raise InvalidArgument(
                f"overlayfs cannot work in {directory}: its options have no room for `:`, `,` and `\\`"
            )
        self._directory = directory
        self._client = client
        known = os.path.exists(INDEX_PARAMETER) if index_off is None else index_off
        self._common = ("index=off",) if known else ()

    def prepare(self, name: str, chain: Sequence[str]) -> Prepared:
        """Make `fs` and `work` and return an overlay, or for an empty chain a writable bind."""
        protocol.names([name, *chain])
        self._client.prepare(name, chain)
        upper = self._tree(name)
        if not chain:
            return Prepared((Mount("bind", upper, ("rw", "rbind")),), upper)
        work = str(self._directory / name / "work")
        options = (*self._common, f"workdir={work}", f"upperdir={upper}", self._lower(chain))
        return Prepared((Mount("overlay", "overlay", options),), upper)

    def view(self, name: str, chain: Sequence[str]) -> Prepared:
        """Return a read-only overlay, or for a single layer a read-only bind, since overlayfs needs two."""
        protocol.names(chain)
        if not chain:
            self._client.prepare(name, chain)
            return Prepared((Mount("bind", self._tree(name), ("ro", "rbind")),), "")
        if len(chain) == 1:
            return Prepared((Mount("bind", self._tree(chain[0]), ("ro", "rbind")),), "")
        return Prepared((Mount("overlay", "overlay", (*self._common, self._lower(chain))),), "")

    def remove(self, name: str) -> None:
        """Drop a snapshot; nothing by that name is success."""
        self._client.remove(name)

    def _tree(self, name: str) -> str:
        return str(self._directory / name / "fs")

    def _lower(self, chain: Sequence[str]) -> str:
        # The kernel reads lowerdir from the top of the stack to its base.
        return "lowerdir=" + ":".join(self._tree(layer) for layer in reversed(chain))
