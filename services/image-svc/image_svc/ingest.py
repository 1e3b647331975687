"""Blobs on their way in: a partial file that grows, that others read meanwhile, and that becomes a blob.

A partial is `<root>/ingest/<algorithm>-<hex>`; what it holds is used again after a restart, since its digest is
checked as a whole before it counts. Readers follow the file, not the network: none of them can hold the download up.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bulkhead.errors import BulkheadError, Cancelled
from bulkhead.files import fsync_directory
from image_svc.patience import Patience
from image_svc.unpack.linux import sync_file_range, syncfs

#: Bytes read at once to hash what is here.
BLOCK = 1 << 20
#: A reader waits for this much before it wakes up, or for the end.
WAKE = 256 * 1024
#: Bytes after which those before are on their way to the disk.
FLUSH = 1 << 20
#: What the name of a damaged blob ends with.
DAMAGED = ".damaged"


class Ingest:
    """One blob that is arriving or is already here, in a file that grows up to `size` bytes."""

    def __init__(self, fd: int, have: int, size: int, *, complete: bool) -> None:
        self._fd = fd
        self._have = have
        self._flushed = have
        self._complete = complete
        self._failure: BulkheadError | None = None
        self._waiting = threading.Condition()
        self.size = size

    @property
    def fd(self) -> int:
        """The file; open until `close`."""
        return self._fd

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
        if self._have - self._flushed >= FLUSH:
            sync_file_range(self._fd, self._flushed, self._have - self._flushed)
            self._flushed = self._have

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

    def close(self) -> None:
        """Close the file; readers must have ended."""
        os.close(self._fd)

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes that are in the file now."""
        offset, end = 0, self._have
        while offset < end:
            block = os.pread(self._fd, min(BLOCK, end - offset), offset)
            if not block:
                raise Cancelled("partial download was cut short under its reader")
            offset += len(block)
            yield block

    def wait(self, offset: int, patience: Patience) -> int:
        """Return how many bytes there are after `offset`, waiting for some; 0 at the end.

        Raises what failed, and as `patience.check` does if the reader is called off, also during the wait.
        """
        with patience.interruptible(self._wake), self._waiting:
            while self._failure is None and not self._complete and self._have - offset < WAKE:
                patience.check()
                self._waiting.wait(patience.left)
            if self._failure is not None:
                # A fresh object, since several threads raise it and each adds its own traceback.
                raise type(self._failure)(str(self._failure))
            return self._have - offset

    def _wake(self) -> None:
        with self._waiting:
            self._waiting.notify_all()


class Content:
    """The directory of finished blobs and that of partial ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
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
        """Turn a partial file whose bytes were checked into a blob; without one, the blob that is there stays.

        It becomes durable with the file system, which must be synced before the blob is recorded.
        """
        with suppress(FileNotFoundError):
            self.partial(digest).rename(self.path(digest))

    def sync(self) -> None:
        """Write everything on the file system of the blobs to disk; OSError if that fails."""
        fd = os.open(self._ingest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)

    def give_back(self, digest: str) -> None:
        """Turn a blob that was never recorded into a partial file again, whose bytes the next pull will check."""
        with suppress(FileNotFoundError):
            self.path(digest).rename(self.partial(digest))

    def drop_partial(self, digest: str) -> bool:
        """Forget the bytes of a download that proved wrong or was given up; True if there were any."""
        try:
            self.partial(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def stage(self, digest: str, data: bytes) -> None:
        """Store a small blob, whose digest was checked, as a partial file that is whole: `keep` makes it a blob."""
        path = self._ingest / f"{digest.replace(':', '-')}.{threading.get_ident()}"
        try:
            path.write_bytes(data)
            path.rename(self.partial(digest))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

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

    def quarantine(self, digest: str) -> bool:
        """Put a blob that proved damaged aside, for the collector to remove later; False if there is none."""
        with suppress(FileNotFoundError):
            self.path(digest).rename(f"{self.partial(digest)}{DAMAGED}")
            return True
        return False

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
        """Yield the partial files, and the damaged ones that were put aside."""
        with os.scandir(self._ingest) as entries:
            yield from entries

    def partial_usage(self) -> tuple[int, int]:
        """Return what they take on disk, in bytes, and how many they are."""
        taken = count = 0
        for entry in self.partials():
            with suppress(FileNotFoundError):
                taken += entry.stat(follow_symlinks=False).st_blocks * 512
                count += 1
        return taken, count

    @property
    def room(self) -> int:
        """Bytes that are free on the file system."""
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize

    def shortage(self, wanted: int) -> str:
        """Say how much room is missing for so many bytes, on a file system that has just proved full."""
        missing = max(wanted - self.room, os.statvfs(self.root).f_frsize)
        return f"at least {missing} bytes are missing on the file system of {self.root}"
