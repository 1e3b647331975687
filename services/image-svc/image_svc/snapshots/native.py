"""native: a full copy of the layers for each container, for file systems that cannot carry an overlay."""

from collections.abc import Sequence
from pathlib import Path

from image_svc.snapshots.base import Mount, Prepared
from image_svc.unpack import protocol
from image_svc.unpack.client import UnpackClient


class Native:
    """Copies the merged layers into `<directory>/<name>/fs` and binds that."""

    name = "native"

    def __init__(self, directory: Path, client: UnpackClient) -> None:
        """Copy below `directory` through the helper behind `client`."""
        self._directory = directory
        self._client = client

    def prepare(self, name: str, chain: Sequence[str]) -> Prepared:
        """Copy the layers, unless that was done, and return a writable bind of the copy."""
        tree = self._copy(name, chain)
        return Prepared((Mount("bind", tree, ("rw", "rbind")),), tree)

    def view(self, name: str, chain: Sequence[str]) -> Prepared:
        """Copy the layers, unless that was done, and return a read-only bind of the copy."""
        return Prepared((Mount("bind", self._copy(name, chain), ("ro", "rbind")),), "")

    def remove(self, name: str) -> None:
        """Drop a snapshot; nothing by that name is success."""
        self._client.remove(name)

    def _copy(self, name: str, chain: Sequence[str]) -> str:
        protocol.names([name, *chain])
        self._client.copy(name, chain)
        return str(self._directory / name / "fs")
