"""Blobs on their way in: a partial file that grows, that several threads read meanwhile, and that becomes a blob.

A partial is `<root>/ingest/<algorithm>-<hex>`; what it holds is used again after a restart, since its digest is
checked as a whole before it counts. Readers follow the file, not the network: none of them can hold the download up.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from bulkhead.errors import BulkheadError, Cancelled
from bulkhead.files import fsync_directory
from image_svc.patience import Patience

#: Bytes handed to a reader at once: large enough that hashing runs without the interpreter lock for most of it.
BLOCK = 512 * 1024
#: A reader waits for this much before it wakes up, or for the end.
WAKE = 128 * 1024


class Ingest:
    """One blob that is arriving or is already here, in a file that grows up to `size` bytes."""

    def __init__(self, fd: int, have: int, size: int, *, complete: bool) -> None:
        self._fd = fd
        self._have = have
        self._complete = complete
        self._failure: BulkheadError | None = None
        self._waiting = threading.Condition()
        self.size = size

    @property
    def have(self) -> int:
        """Bytes in the file."""
        return self._have

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived."""
        return self._complete

    def write(self, part: memoryview) -> None:
        """Append bytes; only the one thread that downloads does."""
        while part:
            written = os.pwrite(self._fd, part, self._have)
            part = part[written:]
            woken = (self._have + written) // WAKE > self._have // WAKE or self._have + written >= self.size
            self._have += written
            if woken:
                with self._waiting:
                    self._waiting.notify_all()

    def finish(self) -> None:
        """Say that every byte has arrived; readers come to their end."""
        with self._waiting:
            self._complete = True
            self._waiting.notify_all()

    def fail(self, failure: BulkheadError) -> None:
        """Say that no more bytes will come; readers raise the failure."""
        with self._waiting:
            self._failure = failure
            self._waiting.notify_all()

    def sync(self) -> None:
        """Make the bytes durable."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; readers must have ended."""
        os.close(self._fd)

    def follow(self, patience: Patience) -> Iterator[bytes]:
        """Yield the whole blob from its first byte, waiting for what has not arrived.

        Raises what failed, and as `patience.check` does if the reader is called off, also during a wait.
        """
        offset = 0
        with patience.interruptible(self._wake):
            while self._wait(offset, patience):
                block = os.pread(self._fd, min(BLOCK, self._have - offset), offset)
                if not block:
                    raise Cancelled("partial download was cut short under its reader")
                offset += len(block)
                yield block

    def _wake(self) -> None:
        with self._waiting:
            self._waiting.notify_all()

    def _wait(self, offset: int, patience: Patience) -> bool:
        """Wait for bytes after `offset`; False at the end."""
        with self._waiting:
            while self._failure is None and not self._complete and self._have - offset < WAKE:
                patience.check()
                self._waiting.wait(patience.left)
            if self._failure is not None:
                # A fresh object, since several threads raise it and each adds its own traceback.
                raise type(self._failure)(str(self._failure))
            return self._have > offset


class Content:
    """The directory of finished blobs and that of partial ones."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._ingest = root / "ingest"
        self._ingest.mkdir(parents=True, exist_ok=True, mode=0o700)
        for algorithm in ("sha256", "sha512"):
            (self._blobs / algorithm).mkdir(parents=True, exist_ok=True, mode=0o711)

    def path(self, digest: str) -> Path:
        """Return where a finished blob lies."""
        algorithm, _, name = digest.partition(":")
        return self._blobs / algorithm / name

    def partial(self, digest: str) -> Path:
        """Return where a blob that is not complete lies."""
        return self._ingest / digest.replace(":", "-")

    def has(self, digest: str, size: int = -1) -> bool:
        """Whether a finished blob is here, with that size if one is given."""
        try:
            found = self.path(digest).stat().st_size
        except FileNotFoundError:
            return False
        return size < 0 or found == size

    def read(self, digest: str) -> bytes:
        """Return a small blob's bytes; FileNotFoundError if it is not here."""
        return self.path(digest).read_bytes()

    def open(self, digest: str, size: int) -> Ingest:
        """Open a finished blob for readers, or its partial file with what it has."""
        if self.has(digest, size):
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
            return Ingest(fd, size, size, complete=True)
        fd = os.open(self.partial(digest), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        have = os.fstat(fd).st_size
        if have > size:
            os.ftruncate(fd, 0)
            have = 0
        return Ingest(fd, have, size, complete=False)

    def keep(self, digest: str) -> None:
        """Turn a partial file whose bytes were checked and synced into a blob, durably."""
        target = self.path(digest)
        self.partial(digest).rename(target)
        fsync_directory(target.parent)

    def drop_partial(self, digest: str) -> bool:
        """Forget the bytes of a download that proved wrong or was given up; True if there were any."""
        try:
            self.partial(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def store(self, digest: str, data: bytes) -> None:
        """Store a small blob whose digest was checked, durably."""
        if self.has(digest, len(data)):
            return
        path = self._ingest / f"{digest.replace(':', '-')}.{threading.get_ident()}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fdatasync(fd)
            path.rename(self.path(digest))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        fsync_directory(self.path(digest).parent)

    def remove(self, digest: str) -> None:
        """Remove a blob; one that is not here is success. Readers that opened it go on."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Yield the digest of every finished blob."""
        for algorithm in ("sha256", "sha512"):
            with os.scandir(self._blobs / algorithm) as entries:
                for entry in entries:
                    yield f"{algorithm}:{entry.name}"

    def partials(self) -> Iterator[os.DirEntry[str]]:
        """Yield the partial files."""
        with os.scandir(self._ingest) as entries:
            yield from entries
