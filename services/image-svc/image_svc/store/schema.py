"""The tables of images.db, and how an older file becomes a newer one."""

import sqlite3

from bulkhead.errors import FailedPrecondition

_TABLES = """
CREATE TABLE images (
    id TEXT PRIMARY KEY,            -- digest of the configuration
    chain_id TEXT NOT NULL,         -- of the topmost layer; '' for an image without layers
    user TEXT NOT NULL,
    pulled_at INTEGER NOT NULL      -- nanoseconds since 1970
) STRICT;
CREATE TABLE manifests (
    digest TEXT PRIMARY KEY,
    image_id TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    encrypted INTEGER NOT NULL
) STRICT;
CREATE INDEX manifests_image ON manifests(image_id);
CREATE TABLE manifest_layers (
    manifest TEXT NOT NULL REFERENCES manifests(digest) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    chain_id TEXT NOT NULL,
    annotations TEXT NOT NULL,      -- JSON object
    PRIMARY KEY (manifest, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE names (
    name TEXT PRIMARY KEY,          -- complete reference: repository:tag or repository@digest
    manifest TEXT NOT NULL REFERENCES manifests(digest) ON DELETE CASCADE,
    target TEXT NOT NULL            -- digest of the index or manifest that the name resolved to
) STRICT;
CREATE INDEX names_manifest ON names(manifest);
CREATE TABLE layers (
    chain_id TEXT PRIMARY KEY,
    parent TEXT NOT NULL,           -- chain id of the layer beneath; '' for a base layer
    diff_id TEXT NOT NULL,
    name INTEGER NOT NULL UNIQUE,   -- snapshot directory
    bytes INTEGER NOT NULL,
    inodes INTEGER NOT NULL
) STRICT;
CREATE TABLE snapshots (
    key TEXT PRIMARY KEY,           -- container id
    name INTEGER NOT NULL UNIQUE,
    snapshotter TEXT NOT NULL,
    image_id TEXT NOT NULL,
    manifest TEXT NOT NULL,
    chain_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL
) STRICT;
CREATE TABLE counters (last_name INTEGER NOT NULL) STRICT;
INSERT INTO counters VALUES (0);
"""
_CONTENT = """
CREATE TABLE content_names (
    name TEXT PRIMARY KEY,          -- of content that is not unpacked: complete reference, as in names
    target TEXT NOT NULL,           -- digest of an index or manifest
    created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE held (
    target TEXT NOT NULL,           -- digest of an index or manifest that has a name
    digest TEXT NOT NULL,           -- of a blob that stays for it, whatever the node runs of it
    PRIMARY KEY (target, digest)
) STRICT, WITHOUT ROWID;
"""
_PROXIED = """
CREATE TABLE proxied_layers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    snapshotter TEXT NOT NULL,      -- name of a proxy plugin
    chain_id TEXT NOT NULL,
    parent TEXT NOT NULL,           -- chain id of the layer beneath; '' for a base layer
    bytes INTEGER NOT NULL,
    inodes INTEGER NOT NULL,
    UNIQUE (snapshotter, chain_id)
) STRICT;
"""
_PROVISIONAL = """
CREATE TABLE provisional_names (
    name TEXT PRIMARY KEY           -- given by an import that has not come to its end, and by nobody else
) STRICT, WITHOUT ROWID;
"""
#: Each makes the tables of the version before into its own, the first into 1.
_STEPS = (_TABLES, _CONTENT, _PROXIED, _PROVISIONAL)
VERSION = len(_STEPS)


def open_database(path: str) -> sqlite3.Connection:
    """Open or create the database; every commit survives a power loss. A newer version is FailedPrecondition."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise FailedPrecondition(f"{path} was written by a newer Bulkhead (format {version}, known: {VERSION})")
        for number, step in list(enumerate(_STEPS, 1))[version:]:
            connection.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version={number}; COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: str) -> sqlite3.Connection:
    """Open an existing database once more, to read what is committed while a commit of the other connection runs."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        for pragma in ("query_only=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def unused(layers: str) -> str:
    """Return the condition of a table of layers for those that no manifest, no snapshot and no layer on them needs."""
    return f"""WHERE chain_id NOT IN (
    WITH RECURSIVE used(chain_id) AS (
        SELECT chain_id FROM manifest_layers UNION SELECT chain_id FROM snapshots
        UNION SELECT l.parent FROM {layers} l JOIN used u ON l.chain_id = u.chain_id WHERE l.parent <> ''
    ) SELECT chain_id FROM used
)"""  # noqa: S608 - our own tables' names
