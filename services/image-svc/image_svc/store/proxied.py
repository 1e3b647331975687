"""Layers in proxy snapshotters, as records: written before the layer is made there, deleted after it is gone.

What is really there the snapshotter alone knows: it has a life, and perhaps an administrator, of its own.
"""

from image_svc.store.kept import Database
from image_svc.store.schema import unused

#: Chains that an image needs, wherever it was unpacked, or a container in that snapshotter, and those beneath them.
_UNUSED = unused("proxied_layers")


class ProxiedLayers:
    """The part of the store that knows them."""

    def add_proxied(self: Database, snapshotter: str, chain_id: str, parent: str) -> None:
        """Record a layer that is about to be made."""
        with self._change() as db:
            db.execute(
                "INSERT INTO proxied_layers (snapshotter, chain_id, parent, bytes, inodes) VALUES (?,?,?,0,0)"
                " ON CONFLICT DO NOTHING",
                (snapshotter, chain_id, parent),
            )

    def measure_proxied(self: Database, snapshotter: str, chain_id: str, size: int, inodes: int) -> None:
        """Record what a layer takes, bytes and inodes."""
        with self._change() as db:
            db.execute(
                "UPDATE proxied_layers SET bytes = ?, inodes = ? WHERE snapshotter = ? AND chain_id = ?",
                (size, inodes, snapshotter, chain_id),
            )

    def unused_proxied(self: Database) -> list[tuple[str, str]]:
        """Return snapshotter and chain id of the layers that no image and no container needs, each before its parent.

        A parent is always recorded before its child.
        """
        rows = self._read(f"SELECT snapshotter, chain_id FROM proxied_layers {_UNUSED} ORDER BY number DESC")  # noqa: S608
        return [(str(snapshotter), str(chain)) for snapshotter, chain in rows]

    def remove_proxied(self: Database, snapshotter: str, chain_id: str) -> None:
        """Forget a layer; an unknown one is success."""
        with self._change(frees=True) as db:
            db.execute("DELETE FROM proxied_layers WHERE snapshotter = ? AND chain_id = ?", (snapshotter, chain_id))

    def proxied_usage(self: Database) -> dict[str, tuple[int, int]]:
        """Return bytes and inodes of all layers by snapshotter."""
        rows = self._read("SELECT snapshotter, sum(bytes), sum(inodes) FROM proxied_layers GROUP BY snapshotter")
        return {str(name): (int(str(size)), int(str(inodes))) for name, size, inodes in rows}
