"""The directory of all snapshots as the helper itself handles it: names, markers and empty directories, no layer byte.

A snapshot is being made while it lacks `fs` or holds `unpacking`, waits to be settled while it holds `pending`, and is
complete otherwise. Markers change by single renames and unlinks, so a kill at any moment leaves one of the three.
"""

import contextlib
import enum
import fcntl
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bulkhead.errors import AlreadyExists, FailedPrecondition, NotFound

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Where removed snapshots wait for the background; no snapshot has such a name.
TRASH, VOID = "trash", "void"
UNPACKING, PENDING = "unpacking", "pending"


class State(enum.Enum):
    """How far a snapshot is."""

    ABSENT = "absent"
    UNPACKING = "being made"
    PENDING = "unpacked but not settled"
    COMPLETE = "complete"


class Snapshots:
    """`<root>/snapshots`, readable by root alone: it holds set-id programs of every image (CVE-2021-41103)."""

    def __init__(self, path: Path) -> None:
        """Make the directory if need be and lock it; FailedPrecondition if another helper works on it."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fd = os.open(path, _OPEN)
        os.fchmod(self.fd, 0o700)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"{path} is in use by another unpack helper") from None
        with contextlib.suppress(FileExistsError):
            os.mkdir(TRASH, 0o700, dir_fd=self.fd)
        self.trash = os.open(TRASH, _OPEN, dir_fd=self.fd)
        with contextlib.suppress(FileExistsError):
            os.mkdir(VOID, 0, dir_fd=self.fd)
        #: An empty directory, for workers that are to see no file.
        self.void = os.open(VOID, _OPEN, dir_fd=self.fd)
        self._thrown = itertools.count()
        self._token = os.urandom(6).hex()

    def state(self, name: str) -> State:
        """Return how far the snapshot is."""
        if not self._exists(name):
            return State.ABSENT
        if self._exists(f"{name}/{UNPACKING}") or not self._exists(f"{name}/fs"):
            return State.UNPACKING
        return State.PENDING if self._exists(f"{name}/{PENDING}") else State.COMPLETE

    def require(self, name: str) -> None:
        """Raise unless the snapshot is complete."""
        state = self.state(name)
        if state is State.ABSENT:
            raise NotFound(f"snapshot {name} does not exist")
        if state is not State.COMPLETE:
            raise FailedPrecondition(f"snapshot {name} is {state.value}")

    def begin(self, name: str) -> None:
        """Make a snapshot with an empty `fs`, replacing a layer that was not settled."""
        state = self.state(name)
        if state is State.COMPLETE:
            raise AlreadyExists(f"snapshot {name} exists and is complete")
        if state is not State.ABSENT:
            self.throw_away(name)
        os.mkdir(name, 0o700, dir_fd=self.fd)
        os.close(self.create(f"{name}/{UNPACKING}"))
        os.mkdir(f"{name}/fs", 0o755, dir_fd=self.fd)

    def unpacked(self, name: str) -> None:
        """Record that the layer is on disk and waits to be settled."""
        here, there = f"{name}/{UNPACKING}", f"{name}/{PENDING}"
        os.rename(here, there, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def complete(self, name: str) -> None:
        """Record that the snapshot may be used."""
        for marker in (UNPACKING, PENDING):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{name}/{marker}", dir_fd=self.fd)

    def prepare(self, name: str, top: str | None) -> None:
        """Make a writable snapshot: `work`, and `fs` with mode and owner of layer `top`'s (0755 and root without)."""
        self.begin(name)
        if top is not None:
            model = os.stat(f"{top}/fs", dir_fd=self.fd, follow_symlinks=False)
            fs = self.open(f"{name}/fs")
            os.fchown(fs, model.st_uid, model.st_gid)
            os.fchmod(fs, stat.S_IMODE(model.st_mode))
            os.close(fs)
        os.mkdir(f"{name}/work", 0o711, dir_fd=self.fd)
        self.complete(name)

    def trash_waits(self) -> bool:
        """Tell whether anything thrown away is still to be removed."""
        with os.scandir(self.trash) as entries:
            return next(entries, None) is not None

    def throw_away(self, name: str) -> bool:
        """Move a snapshot to the trash and return whether there was one."""
        thrown = f"{name}.{self._token}.{next(self._thrown)}"
        try:
            os.rename(name, thrown, src_dir_fd=self.fd, dst_dir_fd=self.trash)
        except FileNotFoundError:
            return False
        return True

    def names(self, after: int) -> Iterator[str]:
        """Yield the snapshots with a number above `after`, in order."""
        numbers = sorted(int(name) for name in os.listdir(self.fd) if name.isascii() and name.isdigit())
        yield from (str(number) for number in numbers if number > after)

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        return os.stat(path, dir_fd=self.fd, follow_symlinks=False).st_size

    def open(self, path: str) -> int:
        """Open a directory; the caller closes it."""
        return os.open(path, _OPEN, dir_fd=self.fd)

    def create(self, path: str) -> int:
        """Create a file for writing; the caller closes it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600, dir_fd=self.fd)

    def read(self, path: str) -> int:
        """Open a file for reading; the caller closes it."""
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)

    def _exists(self, path: str) -> bool:
        try:
            os.stat(path, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True
