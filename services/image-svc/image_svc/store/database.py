"""The store: transactions over images.db. Nothing is written here before its bytes are durable on disk."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bulkhead.errors import ResourceExhausted
from bulkhead.reserve import Reserve
from image_svc.store.containers import ContainerSnapshots
from image_svc.store.kept import HELD, KeptContent, drop_nameless, mark, name_image
from image_svc.store.model import Layer, NewImage, NewLayer, StoredLayer
from image_svc.store.proxied import ProxiedLayers
from image_svc.store.schema import open_database, open_reader, unused

#: Names of snapshots that are reserved at a time, so that not each of them costs a write to disk.
_NAMES = 256
_UNUSED_LAYER = unused("layers")
_NEEDED_BLOB = f"SELECT digest FROM manifests UNION SELECT id FROM images UNION SELECT target FROM names UNION {HELD}"  # noqa: S608


def _unused_blob(*, discard_layers: bool) -> str:
    layers = "" if discard_layers else " UNION SELECT digest FROM manifest_layers"
    return f"WHERE digest NOT IN ({_NEEDED_BLOB}{layers})"


def _add_layers(db: sqlite3.Connection, layers: Sequence[NewLayer]) -> set[int]:
    db.executemany(
        "INSERT INTO layers VALUES (?,?,?,?,?,?) ON CONFLICT (chain_id) DO NOTHING",
        [(e.chain_id, e.parent, e.diff_id, e.name, e.bytes, e.inodes) for e in layers],
    )
    marks = ",".join("?" * len(layers))
    rows = db.execute(
        f"SELECT name FROM layers WHERE name IN ({marks})",  # noqa: S608 # question marks only
        [e.name for e in layers],
    )
    return {int(name) for (name,) in rows}


class Store(KeptContent, ContainerSnapshots, ProxiedLayers):
    """Images, their layers and containers' snapshots; safe to share between threads.

    Reads have a connection of their own, since a commit waits for the disk, which takes a third of a second while pulls
    keep it busy.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = open_database(str(path))
        self._lock = threading.RLock()
        self._reader = open_reader(str(path))
        self.reserve = Reserve(path.with_suffix(".reserve"))
        self._reading = threading.Lock()
        #: Names that this process may hand out: above the first, up to the second.
        self._last_name = self._reserved = 0
        #: Called after each change that lists of images can show is committed, before whoever made it goes on.
        self.listeners: list[Callable[[], None]] = []

    def close(self) -> None:
        """Close the database."""
        with self._lock, self._reading:
            self._reader.close()
            self._connection.close()

    @contextmanager
    def _change(self, *, listed: bool = False, frees: bool = False) -> Iterator[sqlite3.Connection]:
        """Yield a transaction, committed at the end; ResourceExhausted for a full disk, with nothing changed.

        `listed`: lists of images can show the change. `frees`: it removes something, which must work on a full disk.
        """
        if frees:
            self.reserve.spend()
        with self._transaction() as db:
            yield db
        if listed:
            for listener in self.listeners:
                listener()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                # SQLite has rolled some failures back by itself; a COMMIT that failed has not.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise ResourceExhausted(f"{self._path}: {error}") from error
                raise

    def _read(self, statement: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with self._reading:
            return self._reader.execute(statement, values).fetchall()

    # Names of snapshot directories

    def new_names(self, count: int) -> list[int]:
        """Return numbers that no snapshot has had or will have again."""
        with self._lock:
            if count > self._reserved - self._last_name:
                self._reserve(count + _NAMES)
            self._last_name += count
            return list(range(self._last_name - count + 1, self._last_name + 1))

    def _reserve(self, count: int) -> None:
        """Take so many names for this process, which a crash leaves unused."""
        with self._change() as db:
            row = db.execute("UPDATE counters SET last_name = last_name + ? RETURNING last_name", (count,)).fetchone()
        self._reserved = int(row[0])
        self._last_name = self._reserved - count

    def begin_names_after(self, used: int) -> None:
        """Hand out no number up to `used`, which a directory has already."""
        with self._change() as db:
            db.execute("UPDATE counters SET last_name = max(last_name, ?)", (used,))
            self._last_name = self._reserved = 0

    # Images

    def add_image(
        self, image: NewImage, layers: Sequence[NewLayer] = (), blobs: Mapping[str, int] | None = None
    ) -> set[int]:
        """Record a complete image, what was unpacked and fetched for it, and point its names at it, at once.

        `blobs` are sizes by digest. Returns the names of the layers that count: a chain that another pull recorded
        first stays.
        """
        chain_id = image.layers[-1].chain_id if image.layers else ""
        with self._change(listed=True) as db:
            kept = _add_layers(db, layers)
            db.executemany("INSERT INTO blobs VALUES (?,?) ON CONFLICT DO NOTHING", list((blobs or {}).items()))
            db.execute(
                "INSERT INTO images VALUES (?,?,?,?) ON CONFLICT (id) DO UPDATE SET pulled_at = excluded.pulled_at",
                (image.id, chain_id, image.user, time.time_ns()),
            )
            db.execute(
                "INSERT INTO manifests VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
                (image.manifest, image.id, image.media_type, image.size, image.encrypted),
            )
            db.executemany(
                "INSERT INTO manifest_layers VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
                [
                    (
                        image.manifest,
                        n,
                        e.digest,
                        e.media_type,
                        e.size,
                        e.diff_id,
                        e.chain_id,
                        json.dumps(e.annotations),
                    )
                    for n, e in enumerate(image.layers)
                ],
            )
            mark(db, image.names, provisional=image.provisional)
            name_image(db, image.names, image.manifest, image.target)
            drop_nameless(db)
        return kept

    def remove_names(self, names: Iterable[str]) -> None:
        """Forget names, and the manifests and images that have none left; unknown names are success."""
        gone = list(names)
        with self._change(listed=True, frees=True) as db:
            for table in ("names", "content_names"):
                db.executemany(f"DELETE FROM {table} WHERE name = ?", [(name,) for name in gone])  # noqa: S608
            drop_nameless(db)

    def image_rows(self) -> list[tuple[str, str, str, str, int, bool, str]]:
        """Return id, chain id, user, manifest, size, encrypted and name, a row for each name, oldest image first."""
        rows = self._read(
            "SELECT i.id, i.chain_id, i.user, m.digest, m.size, m.encrypted, n.name"
            " FROM images i JOIN manifests m ON m.image_id = i.id JOIN names n ON n.manifest = m.digest"
            " ORDER BY i.pulled_at, i.id, n.name"
        )
        return [(str(a), str(b), str(c), str(d), int(str(e)), bool(f), str(g)) for a, b, c, d, e, f, g in rows]

    def manifest_layers(self, manifest: str) -> list[Layer]:
        """Return the layers of a manifest, base first."""
        rows = self._read(
            "SELECT digest, media_type, size, diff_id, chain_id, annotations FROM manifest_layers"
            " WHERE manifest = ? ORDER BY position",
            (manifest,),
        )
        return [Layer(str(a), str(b), int(str(c)), str(d), str(e), json.loads(str(f))) for a, b, c, d, e, f in rows]

    # Layers

    def layer(self, chain_id: str) -> StoredLayer | None:
        """Return an unpacked layer."""
        rows = self._read("SELECT chain_id, parent, name FROM layers WHERE chain_id = ?", (chain_id,))
        return StoredLayer(str(rows[0][0]), str(rows[0][1]), int(str(rows[0][2]))) if rows else None

    def layer_names(self) -> list[int]:
        """Return the snapshot names of all unpacked layers."""
        return [int(str(name)) for (name,) in self._read("SELECT name FROM layers")]

    def chain(self, chain_id: str) -> list[StoredLayer] | None:
        """Return the layers of a chain, base first; None if one of them is missing."""
        layers: list[StoredLayer] = []
        while chain_id:
            found = self.layer(chain_id)
            if found is None:
                return None
            layers.append(found)
            chain_id = found.parent
        return layers[::-1]

    # Blobs

    def add_blob(self, digest: str, size: int) -> None:
        """Record a blob whose bytes are durable."""
        with self._change() as db:
            db.execute("INSERT INTO blobs VALUES (?,?) ON CONFLICT DO NOTHING", (digest, size))

    def add_blobs(self, blobs: Mapping[str, int]) -> None:
        """Record blobs whose bytes are durable, sizes by digest."""
        with self._change() as db:
            db.executemany("INSERT INTO blobs VALUES (?,?) ON CONFLICT DO NOTHING", list(blobs.items()))

    def usage(self) -> tuple[int, int]:
        """Return bytes and inodes of all blobs and unpacked layers."""
        rows = self._read(
            "SELECT (SELECT coalesce(sum(size), 0) FROM blobs) + (SELECT coalesce(sum(bytes), 0) FROM layers),"
            " (SELECT count(*) FROM blobs) + (SELECT coalesce(sum(inodes), 0) FROM layers)"
        )
        return int(str(rows[0][0])), int(str(rows[0][1]))

    # Garbage

    def unused_layers(self) -> list[StoredLayer]:
        """Return the layers that no image and no container's snapshot needs, the newest first."""
        rows = self._read(f"SELECT chain_id, parent, name FROM layers {_UNUSED_LAYER} ORDER BY name DESC")  # noqa: S608
        return [StoredLayer(str(a), str(b), int(str(c))) for a, b, c in rows]

    def remove_unused_layer(self, chain_id: str) -> bool:
        """Forget an unpacked layer; False if something has come to need it."""
        with self._change(frees=True) as db:
            found = db.execute(f"DELETE FROM layers {_UNUSED_LAYER} AND chain_id = ?", (chain_id,))  # noqa: S608
            return found.rowcount > 0

    def forget_lost_layers(self, lost: Collection[int]) -> list[str]:
        """Forget layers, by the names of their directories, that are not whole, and the images built on them.

        Returns the ids of those images.
        """
        with self._change(listed=True, frees=True) as db:
            rows = db.execute("SELECT chain_id, name FROM layers").fetchall()
            images: set[str] = set()
            for chain_id in [row[0] for row in rows if row[1] in lost]:
                hit = "SELECT m.digest, m.image_id FROM manifests m JOIN manifest_layers l ON l.manifest = m.digest"
                for manifest, image_id in db.execute(f"{hit} WHERE l.chain_id = ?", (chain_id,)).fetchall():
                    images.add(str(image_id))
                    db.execute("DELETE FROM names WHERE manifest = ?", (manifest,))
                db.execute("DELETE FROM layers WHERE chain_id = ?", (chain_id,))
            drop_nameless(db)
        return sorted(images)

    def unused_blobs(self, *, discard_layers: bool = False) -> list[str]:
        """Return the blobs that no image needs; with `discard_layers` those of unpacked layers are not needed."""
        unused = _unused_blob(discard_layers=discard_layers)
        return [str(digest) for (digest,) in self._read(f"SELECT digest FROM blobs {unused}")]  # noqa: S608

    def remove_unused_blob(self, digest: str, *, discard_layers: bool = False) -> bool:
        """Forget a blob; False if something has come to need it."""
        unused = _unused_blob(discard_layers=discard_layers)
        with self._change(frees=True) as db:
            found = db.execute(f"DELETE FROM blobs {unused} AND digest = ?", (digest,))  # noqa: S608
            return found.rowcount > 0

    def blobs(self) -> set[str]:
        """Return every recorded blob."""
        return {str(digest) for (digest,) in self._read("SELECT digest FROM blobs")}

    def remove_blobs(self, digests: Iterable[str]) -> None:
        """Forget blobs."""
        with self._change(frees=True) as db:
            db.executemany("DELETE FROM blobs WHERE digest = ?", [(digest,) for digest in digests])

    def names_in_use(self) -> set[int]:
        """Return the snapshot names of all layers and containers."""
        rows = self._read("SELECT name FROM layers UNION ALL SELECT name FROM snapshots")
        return {int(str(name)) for (name,) in rows}
