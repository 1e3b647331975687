"""Directories of pods and containers: removed whole, but never through a mount into something else.

/proc/self/mountinfo lists every mount of the node, some ten for each pod, and is read only where a mount was met.
"""

import contextlib
import errno
import os
import re
from pathlib import Path

from bulkhead.errors import FailedPrecondition
from sandbox_svc import linux

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK


def mounts_below(path: Path) -> list[str]:
    """Return the mount points at or below a path, deepest first, as this process sees them."""
    prefix = os.path.realpath(path)
    found = [
        point
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        if (point := _unescape(line.split(" ")[4])) == prefix or point.startswith(prefix + "/")
    ]
    return sorted(found, key=len, reverse=True)


def unmount(path: Path) -> None:
    """Unmount lazily everything at or below a path; nothing there is fine."""
    for point in mounts_below(path):
        with contextlib.suppress(OSError):
            linux.umount2(point, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)


def detach(path: Path) -> None:
    """Unmount lazily what is mounted at a path, with everything below that; nothing there is fine."""
    with contextlib.suppress(FileNotFoundError):
        while True:
            try:
                linux.umount2(path, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.EINVAL:  # not a mount point, or no longer one
                    raise
                return


def remove(path: Path) -> None:
    """Remove a directory and all in it, unmounting first; FailedPrecondition if a mount cannot be got rid of."""
    while os.path.lexists(path):
        # Another thread that removes the same tree makes this one stumble; neither may leave the rest to the other.
        with contextlib.suppress(FileNotFoundError):
            try:
                _remove(path)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EBUSY):
                    raise
                unmount(path)
                if left := mounts_below(path):
                    raise FailedPrecondition(f"{path} is not removed: {left[0]} is still mounted") from error
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a tree; EXDEV or EBUSY where something is mounted in it, which then is as it was."""
    above = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _remove_in(above, path.name)
    finally:
        os.close(above)


def _remove_in(where: int, name: str) -> None:
    fd = linux.openat2(name, _OPEN, dirfd=where, resolve=linux.RESOLVE_NO_XDEV)
    try:
        with os.scandir(fd) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove_in(fd, entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=where)


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
