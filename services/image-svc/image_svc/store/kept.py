"""Content that is kept whole though this node does not run it: other platforms, and images that are not unpacked.

A target (the index or manifest that a name resolved to) holds blobs while a name of either kind stands for it. Names of
content that is not unpacked are no images of the CRI, which lists only what can be run.
"""

import sqlite3
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from bulkhead.errors import AlreadyExists

_TARGETS = "SELECT name, target FROM names UNION ALL SELECT name, target FROM content_names"
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

    def add_content(
        self: Database, names: Collection[str], target: str, digests: Iterable[str], *, provisional: bool = False
    ) -> None:
        """Point names at content whose blobs are durable, and keep those.

        A name of an unpacked image moves, unless it stands for that target already.
        """
        with self._change(listed=True) as db:
            mark(db, names, provisional=provisional)
            _name_content(db, names, target)
            _hold(db, target, digests)
            drop_nameless(db)

    def tag(
        self: Database, names: Collection[str], manifest: str, target: str, *, unpacked: bool, keep_existing: bool
    ) -> bool:
        """Point further names at what is here; False, with nothing changed, if it has gone meanwhile.

        What a name stood for stays under its digest; with `keep_existing` such a name is AlreadyExists.
        """
        with self._change(listed=True) as db:
            table, column, wanted = ("names", "manifest", manifest) if unpacked else (f"({_TARGETS})", "target", target)
            if not db.execute(f"SELECT 1 FROM {table} WHERE {column} = ?", (wanted,)).fetchone():  # noqa: S608
                return False
            for name in names:
                _keep_by_digest(db, name, target, keep_existing=keep_existing)
            mark(db, names, provisional=False)
            if unpacked:
                name_image(db, names, manifest, target)
            else:
                _name_content(db, names, target)
            drop_nameless(db)
        return True

    def promote(self: Database, target: str, manifest: str) -> None:
        """Make every name of content that stands for a target one of an image; nothing happens if that has gone."""
        with self._change(listed=True) as db:
            if not db.execute("SELECT 1 FROM manifests WHERE digest = ?", (manifest,)).fetchone():
                return
            rows = db.execute("SELECT name FROM content_names WHERE target = ?", (target,)).fetchall()
            name_image(db, [str(name) for (name,) in rows], manifest, target)
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

    def add_names(self: Database, names: Collection[str], manifest: str, target: str) -> bool:
        """Point an import's further names at an image that is here; False if that has gone, with nothing changed."""
        with self._change(listed=True) as db:
            if not db.execute("SELECT 1 FROM manifests WHERE digest = ?", (manifest,)).fetchone():
                return False
            mark(db, names, provisional=True)
            name_image(db, names, manifest, target)
            drop_nameless(db)
        return True

    def confirm_names(self: Database) -> None:
        """Keep the names that an import gave, which has come to its end."""
        with self._change(frees=True) as db:
            db.execute("DELETE FROM provisional_names")

    def take_back_names(self: Database) -> None:
        """Forget the names that an import gave and nobody else, and what then has none left."""
        if not self._read("SELECT 1 FROM provisional_names LIMIT 1"):
            return
        with self._change(listed=True, frees=True) as db:
            for table in ("names", "content_names"):
                db.execute(f"DELETE FROM {table} WHERE name IN (SELECT name FROM provisional_names)")  # noqa: S608
            drop_nameless(db)

    def content_names(self: Database) -> list[ContentName]:
        """Return every name of content that is not unpacked, by name."""
        rows = self._read("SELECT name, target, created_at FROM content_names ORDER BY name")
        return [ContentName(str(name), str(target), int(str(at))) for name, target, at in rows]

    def held(self: Database, target: str) -> set[str]:
        """Return the blobs kept for a target."""
        return {str(digest) for (digest,) in self._read("SELECT digest FROM held WHERE target = ?", (target,))}

    def targets(self: Database) -> dict[str, str]:
        """Return what every name, of either kind, resolved to."""
        rows = self._read(_TARGETS)
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
    db.execute(f"DELETE FROM provisional_names WHERE name NOT IN (SELECT name FROM ({_TARGETS}))")  # noqa: S608


def mark(db: sqlite3.Connection, names: Iterable[str], *, provisional: bool) -> None:
    """Write down, before names are given, which of them exist through an import that may still fail.

    Whoever else gives such a name makes it one that stays; a name that was there before an import gave it stays, too.
    """
    for name in names:
        if not provisional:
            db.execute("DELETE FROM provisional_names WHERE name = ?", (name,))
        elif not db.execute(f"SELECT 1 FROM ({_TARGETS}) WHERE name = ?", (name,)).fetchone():  # noqa: S608
            db.execute("INSERT INTO provisional_names VALUES (?) ON CONFLICT DO NOTHING", (name,))


def _keep_by_digest(db: sqlite3.Connection, name: str, target: str, *, keep_existing: bool) -> None:
    """Have what a tag stands for keep a name, its repository's with the digest, before the tag goes elsewhere."""
    rows = db.execute(
        "SELECT manifest, target FROM names WHERE name = ?1 UNION ALL"
        " SELECT NULL, target FROM content_names WHERE name = ?1",
        (name,),
    ).fetchall()
    for manifest, before in rows:
        if before == target:
            continue
        if keep_existing:
            raise AlreadyExists(f"{name} is the name of another image")
        by_digest = [f"{name.rpartition(':')[0]}@{before}"]
        if manifest is not None:
            name_image(db, by_digest, str(manifest), str(before))
        else:
            _name_content(db, by_digest, str(before))


def name_image(db: sqlite3.Connection, names: Iterable[str], manifest: str, target: str) -> None:
    """Point names, new ones or such as stand for something else, at a manifest."""
    db.executemany(
        "INSERT INTO names VALUES (?,?,?)"
        " ON CONFLICT (name) DO UPDATE SET manifest = excluded.manifest, target = excluded.target",
        [(name, manifest, target) for name in names],
    )


def _name_content(db: sqlite3.Connection, names: Iterable[str], target: str) -> None:
    for name in names:
        if db.execute("SELECT 1 FROM names WHERE name = ? AND target = ?", (name, target)).fetchone():
            continue
        db.execute("DELETE FROM names WHERE name = ?", (name,))
        db.execute(
            "INSERT INTO content_names VALUES (?,?,?)"
            " ON CONFLICT (name) DO UPDATE SET target = excluded.target, created_at = excluded.created_at",
            (name, target, time.time_ns()),
        )


def _hold(db: sqlite3.Connection, target: str, digests: Iterable[str]) -> None:
    db.executemany("INSERT INTO held VALUES (?,?) ON CONFLICT DO NOTHING", [(target, digest) for digest in digests])


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))
