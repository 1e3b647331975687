"""The SQLite file behind sandbox-svc: pods, containers, and the ledger of what was made for them.

WAL with synchronous=FULL: a commit is on disk when it returns (0.3 ms on the machine this was measured on). One
connection under one lock, since every transaction is a handful of rows.
"""

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from bulkhead.errors import FailedPrecondition, ResourceExhausted
from bulkhead.reserve import Reserve
from sandbox_svc.store.records import ContainerRecord, SandboxRecord

logger = logging.getLogger(__name__)

VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sandboxes (id TEXT PRIMARY KEY, data TEXT NOT NULL, config BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, data TEXT NOT NULL, config BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS ledger_owner ON ledger (owner);
"""


@dataclass(frozen=True)
class Entry:
    """One thing that was, or may have been, made: written before the making, deleted after the undoing."""

    kind: str
    data: dict[str, Any]
    owner: str = ""
    seq: int = 0


Record = SandboxRecord | ContainerRecord
R = TypeVar("R", SandboxRecord, ContainerRecord)


class Database:
    """Records and ledger; every method is one transaction and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        # Records hold containers' environments. SQLite gives its log beside the file the file's own mode, so that must
        # be right before the first write.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            self._connection.close()
            raise FailedPrecondition(
                f"{path} has format {version}, written by a newer release; this one knows {VERSION}"
            )
        self._connection.execute(f"PRAGMA user_version={VERSION}")
        self._reserve = Reserve(path.with_suffix(".reserve"))

    def close(self) -> None:
        """Close the file; later calls raise sqlite3.ProgrammingError."""
        with self._lock:
            self._connection.close()

    def load(self) -> tuple[list[SandboxRecord], list[ContainerRecord]]:
        """Return every record, oldest first, but for those that cannot be read: one must not keep all others."""
        with self._lock:
            pods = self._connection.execute("SELECT id, data, config FROM sandboxes").fetchall()
            containers = self._connection.execute("SELECT id, data, config FROM containers").fetchall()
        return (
            sorted(_readable(pods, SandboxRecord.from_json), key=lambda r: r.created_at),
            sorted(_readable(containers, ContainerRecord.from_json), key=lambda r: r.created_at),
        )

    def save(self, record: Record, intents: Iterable[Entry] = ()) -> None:
        """Write a record and, in the same transaction, what is about to be made for it."""
        row = (record.id, json.dumps(record.to_json()), record.config.SerializeToString(deterministic=True))
        made = list(intents)
        with self._write(makes=bool(made)):
            self._connection.execute(f"INSERT OR REPLACE INTO {_table(record)} VALUES (?, ?, ?)", row)  # noqa: S608 # two constants
            self._insert(record.id, made)

    def intend(self, owner: str, intents: Iterable[Entry]) -> None:
        """Write what is about to be made for an owner."""
        with self._write(makes=True):
            self._insert(owner, intents)

    def forget(self, record: Record) -> None:
        """Delete a record; its ledger entries stay until each is undone."""
        with self._write():
            self._connection.execute(f"DELETE FROM {_table(record)} WHERE id = ?", (record.id,))  # noqa: S608 # two constants

    def entries(self, owner: str) -> list[Entry]:
        """Return an owner's entries, last made first: the order in which to undo them."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT kind, data, owner, seq FROM ledger WHERE owner = ? ORDER BY seq DESC", (owner,)
            ).fetchall()
        return [Entry(kind, json.loads(data), holder, seq) for kind, data, holder, seq in rows]

    def has(self, entry: Entry) -> bool:
        """Tell whether an entry is still to be undone."""
        with self._lock:
            return self._connection.execute("SELECT 1 FROM ledger WHERE seq = ?", (entry.seq,)).fetchone() is not None

    def owners(self) -> set[str]:
        """Return everything that owns ledger entries."""
        with self._lock:
            return {row[0] for row in self._connection.execute("SELECT DISTINCT owner FROM ledger")}

    def amend(self, owner: str, kind: str, data: dict[str, Any]) -> None:
        """Replace what is written about an owner's only entry of a kind."""
        with self._write():
            self._connection.execute(
                "UPDATE ledger SET data = ? WHERE owner = ? AND kind = ?", (json.dumps(data), owner, kind)
            )

    def undone(self, entries: Iterable[Entry]) -> None:
        """Delete entries whose things are gone."""
        with self._write():
            self._connection.executemany("DELETE FROM ledger WHERE seq = ?", [(e.seq,) for e in entries])

    @contextmanager
    def _write(self, *, makes: bool = False) -> Iterator[None]:
        """Hold a transaction, committed at the end; ResourceExhausted for a full disk, with nothing changed.

        What is there can be stopped, changed and removed on a disk without any room; `makes` says that more is to come.
        """
        with self._lock:
            if not makes:
                self._reserve.spend()
            try:
                with self._connection:
                    self._connection.execute("BEGIN IMMEDIATE")
                    yield
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
                raise ResourceExhausted(f"{self._path}: {error}") from error
            if not makes:
                self._reserve.keep()

    def _insert(self, owner: str, intents: Iterable[Entry]) -> None:
        rows = [(owner, e.kind, json.dumps(e.data)) for e in intents]
        self._connection.executemany("INSERT INTO ledger (owner, kind, data) VALUES (?, ?, ?)", rows)


def _readable(rows: Iterable[tuple[str, str, bytes]], parse: Callable[[dict[str, Any], bytes], R]) -> Iterator[R]:
    for ident, data, config in rows:
        try:
            yield parse(json.loads(data), config)
        except (ValueError, KeyError, TypeError, AttributeError, DecodeError) as error:
            logger.error("the record of %s cannot be read, what was made for it is taken back: %r", ident, error)


def _table(record: Record) -> str:
    return "sandboxes" if isinstance(record, SandboxRecord) else "containers"
