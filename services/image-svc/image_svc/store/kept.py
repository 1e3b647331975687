"""Content that is kept whole though this node does not run it: other platforms, and images that are not unpacked.

A target (the index or manifest that a name resolved to) holds blobs while a name of either kind stands for it. Names of
content that is not unpacked are no images of the CRI, which lists only what can be run.
"""

import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

HELD = "SELECT digest FROM held WHERE target IN (SELECT target FROM names UNION SELECT target FROM content_names)"


@dataclass(frozen=True)
class ContentName:
    """A name of content that is not unpacked."""

    name: str
    target: str
    #: Nanoseconds since 1970.
    created_at: int


class Database(Protocol):
    """What the store's parts share."""

    def _change(self, *, listed: bool = False, frees: bool = False) -> AbstractContextManager[sqlite3.Connection]: ...

    def _read(self, statement: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]: ...


class KeptContent:
    """The part of the store that knows such content."""

    def hold(self: Database, target: str, digests: Iterable[str]) -> None:
        """Keep blobs as long as the target has a name; it must have one already."""
        with self._change() as db:
            _hold(db, target, digests)

    def add_content(self: Database, names: Iterable[str], target: str, digests: Iterable[str]) -> None:
        """Point names at content whose blobs are durable, and keep those.

        A name of an unpacked image moves, unless it stands for that target already.
        """
        with self._change(listed=True) as db:
            for name in names:
                if db.execute("SELECT 1 FROM names WHERE name = ? AND target = ?", (name, target)).fetchone():
                    continue
                db.execute("DELETE FROM names WHERE name = ?", (name,))
                db.execute(
                    "INSERT INTO content_names VALUES (?,?,?)"
                    " ON CONFLICT (name) DO UPDATE SET target = excluded.target, created_at = excluded.created_at",
                    (name, target, time.time_ns()),
                )
            _hold(db, target, digests)
            drop_nameless(db)

    def demote(self: Database, name: str, target: str, digests: Iterable[str]) -> None:
        """Make a name of an unpacked image one of content that is kept; nothing happens to other names."""
        with self._change(listed=True, frees=True) as db:
            if not db.execute("DELETE FROM names WHERE name = ? AND target = ?", (name, target)).rowcount:
                return
            db.execute(
                "INSERT INTO content_names VALUES (?,?,?) ON CONFLICT (name) DO NOTHING", (name, target, time.time_ns())
            )
            _hold(db, target, digests)
            drop_nameless(db)

    def layers_of_only(self: Database, manifests: Iterable[str]) -> list[tuple[str, str, int]]:
        """Return chain id, diff id and bytes of the unpacked layers that no manifest but these is made of."""
        marks = list(manifests)
        rows = self._read(
            "SELECT chain_id, diff_id, bytes FROM layers WHERE chain_id IN"  # noqa: S608 # question marks only
            f" (SELECT chain_id FROM manifest_layers WHERE manifest IN ({_marks(marks)})) AND chain_id NOT IN"
            f" (SELECT chain_id FROM manifest_layers WHERE manifest NOT IN ({_marks(marks)})) ORDER BY name",
            (*marks, *marks),
        )
        return [(str(chain), str(diff), int(str(size))) for chain, diff, size in rows]

    def layer_users(self: Database) -> dict[str, list[str]]:
        """Return the keys of the containers whose file system stands on each layer, by chain id."""
        found: dict[str, list[str]] = {}
        rows = self._read(
            "WITH RECURSIVE used(key, chain_id) AS (SELECT key, chain_id FROM snapshots"
            " UNION SELECT u.key, l.parent FROM layers l JOIN used u ON l.chain_id = u.chain_id WHERE l.parent <> '')"
            " SELECT key, chain_id FROM used"
        )
        for key, chain in rows:
            found.setdefault(str(chain), []).append(str(key))
        return found

    def add_names(self: Database, names: Iterable[str], manifest: str, target: str) -> bool:
        """Point further names at an image that is here; False, with nothing changed, if it has gone meanwhile."""
        with self._change(listed=True) as db:
            if not db.execute("SELECT 1 FROM manifests WHERE digest = ?", (manifest,)).fetchone():
                return False
            db.executemany(
                "INSERT INTO names VALUES (?,?,?)"
                " ON CONFLICT (name) DO UPDATE SET manifest = excluded.manifest, target = excluded.target",
                [(name, manifest, target) for name in names],
            )
            drop_nameless(db)
        return True

    def content_names(self: Database) -> list[ContentName]:
        """Return every name of content that is not unpacked, by name."""
        rows = self._read("SELECT name, target, created_at FROM content_names ORDER BY name")
        return [ContentName(str(name), str(target), int(str(at))) for name, target, at in rows]

    def held(self: Database, target: str) -> set[str]:
        """Return the blobs kept for a target."""
        return {str(digest) for (digest,) in self._read("SELECT digest FROM held WHERE target = ?", (target,))}

    def targets(self: Database) -> dict[str, str]:
        """Return what every name, of either kind, resolved to."""
        rows = self._read("SELECT name, target FROM names UNION ALL SELECT name, target FROM content_names")
        return {str(name): str(target) for name, target in rows}

    def pulled_at(self: Database) -> dict[str, int]:
        """Return when each image was last pulled, nanoseconds since 1970, by its id."""
        return {str(image): int(str(at)) for image, at in self._read("SELECT id, pulled_at FROM images")}

    def blob_sizes(self: Database) -> dict[str, int]:
        """Return the bytes of every recorded blob."""
        return {str(digest): int(str(size)) for digest, size in self._read("SELECT digest, size FROM blobs")}

    def layer_sizes(self: Database) -> dict[str, int]:
        """Return the bytes of every unpacked layer on disk, by chain id."""
        return {str(chain): int(str(size)) for chain, size in self._read("SELECT chain_id, bytes FROM layers")}


def drop_nameless(db: sqlite3.Connection) -> None:
    """Forget manifests, images and held content that no name stands for any more."""
    db.execute("DELETE FROM content_names WHERE name IN (SELECT name FROM names)")
    db.execute("DELETE FROM manifests WHERE digest NOT IN (SELECT manifest FROM names)")
    db.execute("DELETE FROM images WHERE id NOT IN (SELECT image_id FROM manifests)")
    db.execute("DELETE FROM held WHERE target NOT IN (SELECT target FROM names UNION SELECT target FROM content_names)")


def _hold(db: sqlite3.Connection, target: str, digests: Iterable[str]) -> None:
    db.executemany("INSERT INTO held VALUES (?,?) ON CONFLICT DO NOTHING", [(target, digest) for digest in digests])


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))
