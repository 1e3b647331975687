"""Containers' snapshots, as records: written before the snapshot is made, deleted after it is gone."""

import time

from image_svc.store.kept import Database
from image_svc.store.model import Snapshot


class ContainerSnapshots:
    """The part of the store that knows them."""

    def add_snapshot(self: Database, snapshot: Snapshot) -> Snapshot:
        """Record a container's snapshot before it is made; return the one recorded under that key, maybe earlier."""
        with self._change() as db:
            db.execute(
                "INSERT INTO snapshots VALUES (?,?,?,?,?,?,?) ON CONFLICT (key) DO NOTHING",
                (*vars(snapshot).values(), time.time_ns()),
            )
        found = _snapshots(self, "key = ?", snapshot.key)
        return found[0] if found else snapshot

    def snapshot(self: Database, key: str) -> Snapshot | None:
        """Return the snapshot of a container."""
        return next(iter(_snapshots(self, "key = ?", key)), None)

    def snapshots(self: Database, before: int | None = None) -> list[Snapshot]:
        """Return all snapshots, or those recorded before a time in nanoseconds."""
        return _snapshots(self, "created_at < ?", before if before is not None else 2**62)

    def remove_snapshot(self: Database, key: str) -> None:
        """Forget a container's snapshot; an unknown key is success."""
        with self._change(frees=True) as db:
            db.execute("DELETE FROM snapshots WHERE key = ?", (key,))


def _snapshots(store: Database, condition: str, value: object) -> list[Snapshot]:
    rows = store._read(
        f"SELECT key, name, snapshotter, image_id, manifest, chain_id FROM snapshots WHERE {condition}",  # noqa: S608
        (value,),
    )
    return [Snapshot(str(a), int(str(b)), str(c), str(d), str(e), str(f)) for a, b, c, d, e, f in rows]
