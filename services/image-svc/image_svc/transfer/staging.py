"""Files on their way into the content store, of archives or made here: hashed while written, blobs once right."""

import hashlib
import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bulkhead.errors import BulkheadError, DataLoss, ResourceExhausted
from bulkhead.files import fsync_directory
from image_svc import telemetry
from image_svc.ingest import Content
from image_svc.leases import Lease
from image_svc.oci import digests
from image_svc.patience import Patience
from image_svc.store import Store
from image_svc.unpack.protocol import DiskFull

if TYPE_CHECKING:
    from hashlib import _Hash

logger = logging.getLogger(__name__)

#: What the names of files begin with that are still being written, among the partial downloads.
_PREFIX = "import-"
#: Enough of a blob's beginning to tell how it is compressed.
HEAD = 8


@dataclass(frozen=True)
class Staged:
    """A blob that is in the content store and kept there while the lease lasts."""

    digest: str
    size: int
    #: Its first bytes.
    head: bytes


class Staging:
    """Takes in the files of one archive; what nothing comes to need is garbage when the lease ends."""

    def __init__(
        self,
        content: Content,
        store: Store,
        lease: Lease,
        patience: Patience,
        limit: int,
        *,
        what: str = "archive entry",
    ) -> None:
        self._content = content
        self._store = store
        self._lease = lease
        self._patience = patience
        #: Bytes of one file.
        self.limit = limit
        self._what = what

    def take(self, name: str, size: int, pieces: Iterable[bytes], expected: str = "") -> Staged:
        """Store one file of that many bytes, durably, under its digest; DataLoss if that is not the one expected.

        ResourceExhausted for one that is larger than layers may be, or than the disk has room for.
        """
        if size > self.limit:
            raise ResourceExhausted(f"{self._what} {name!r} has {size} bytes, at most {self.limit} are allowed")
        self._lease.claim(*([expected] if expected else []))
        hasher = digests.hasher(expected) if expected else hashlib.sha256()
        known = bool(expected) and self._content.has(expected, size)
        if not known and size > self._content.room:
            text = f"{self._what} {name!r} has {size} bytes, more than there is room for"
            raise DiskFull(f"{text}; {self._content.shortage(size)}")
        path = self._content.partial(f"{_PREFIX}{secrets.token_hex(8)}")
        try:
            head = self._hash(pieces, hasher) if known else self._write(str(path), pieces, hasher)
            found = f"{hasher.name}:{hasher.hexdigest()}"
            if expected and found != expected:
                raise DataLoss(f"{self._what} {name!r} has content of digest {found}")
            self._lease.claim(found)
            # Recorded before it has its name: a file without a record would stay where a full disk fails the record.
            self._store.add_blob(found, size)
            if not known:
                path.rename(self._content.path(found))
                fsync_directory(self._content.path(found).parent)
        except OSError as error:
            written = path.stat().st_size if path.exists() else size
            raise self._failure(name, size - written, error) from error
        finally:
            path.unlink(missing_ok=True)
        return Staged(found, size, head)

    def document(self, data: bytes) -> str:
        """Store a small document of ours and return its digest."""
        digest = digests.of(data)
        self._lease.claim(digest)
        try:
            self._content.store(digest, data)
        except OSError as error:
            raise self._failure(digest, len(data), error) from error
        self._store.add_blob(digest, len(data))
        return digest

    def _failure(self, name: str, left: int, error: OSError) -> BulkheadError:
        """Return the error for a file of which so many bytes could not be written."""
        failure = telemetry.disk_failure(f"{self._what} {name!r}", error)
        return DiskFull(f"{failure}; {self._content.shortage(left)}") if isinstance(failure, DiskFull) else failure

    def _write(self, path: str, pieces: Iterable[bytes], hasher: "_Hash") -> bytes:
        head = b""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb", buffering=0):
            for piece in pieces:
                self._patience.check()
                hasher.update(piece)
                _write_all(fd, piece)
                head += piece[: HEAD - len(head)]
            os.fdatasync(fd)
        return head

    def _hash(self, pieces: Iterable[bytes], hasher: "_Hash") -> bytes:
        head = b""
        for piece in pieces:
            self._patience.check()
            hasher.update(piece)
            head += piece[: HEAD - len(head)]
        return head


@contextmanager
def all_or_none(store: Store) -> Iterator[None]:
    """Take back the names that the block gives provisionally unless it comes to its end; one at a time.

    After a crash the next start does that, and where a full disk forbids it the next import.
    """
    store.take_back_names()
    try:
        yield
        store.confirm_names()
    except BaseException:
        _take_back(store, "a failed import gave")
        raise


def discard_leftovers(content: Content, store: Store) -> None:
    """Remove the files of imports and the like that a crash cut short, and names they gave; none may be under way."""
    for entry in content.partials():
        if entry.name.startswith(_PREFIX):
            os.unlink(entry.path)
            telemetry.REMOVED.labels("partial").inc()
    _take_back(store, "an interrupted import gave")


def _take_back(store: Store, what: str) -> None:
    try:
        store.take_back_names()
    except BulkheadError as error:  # a disk without any room, which only a running service can do something about
        logger.warning("names that %s are left to the next one: %s", what, error)


def _write_all(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]
