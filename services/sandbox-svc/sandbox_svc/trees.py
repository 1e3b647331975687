"""Directories of pods and containers: removed whole, but never through a mount into something else."""

import contextlib
import os
import re
import shutil
from pathlib import Path

from bulkhead.errors import FailedPrecondition
from sandbox_svc import linux


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


def remove(path: Path) -> None:
    """Remove a directory and all in it, unmounting first; FailedPrecondition if a mount cannot be got rid of."""
    unmount(path)
    if left := mounts_below(path):
        raise FailedPrecondition(f"{path} is not removed: {left[0]} is still mounted")
    while os.path.lexists(path):
        # Another thread that removes the same tree makes this one stumble; neither may leave the rest to the other.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
