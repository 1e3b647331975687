"""Room that a database keeps for itself: on a disk without any, forgetting something takes a few pages as well."""

import os
from contextlib import suppress
from pathlib import Path

#: Bytes of it. The largest removal there is, an image of 127 layers with a thousand names, takes a part of it.
SIZE = 1 << 20
#: It is taken back once there is so much room beside it.
_EASE = 8 * SIZE


class Reserve:
    """A file that is there for its blocks alone; they are given up when something is to be removed that needs them."""

    def __init__(self, path: Path) -> None:
        """Take the blocks if the disk has them."""
        self._path = path
        self.keep()

    def keep(self) -> None:
        """Take the blocks, or take them back, where there is room for more than them."""
        with suppress(OSError):
            if self._held() >= SIZE or self._room() < _EASE:
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)
            finally:
                os.close(fd)

    def spend(self) -> None:
        """Give the blocks up if there is no room beside them."""
        with suppress(OSError):
            # Also a part of them, where the disk became full while they were taken.
            if self._room() < SIZE and self._held():
                os.truncate(self._path, 0)

    def _held(self) -> int:
        """Return the bytes that are held."""
        try:
            return self._path.stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def _room(self) -> int:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize
