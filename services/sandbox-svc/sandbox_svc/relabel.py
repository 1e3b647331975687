"""SELinux labels of what is mounted into a container, where the CRI's selinux_relabel asks for it.

A volume may be in use by other containers while it is walked: the directory that its path led to is held open, nothing
in it is reached by more than one name below an open directory, and no symlink is followed.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from bulkhead.errors import FailedPrecondition, InvalidArgument
from sandbox_svc import linux

ATTRIBUTE = "security.selinux"
#: Each level costs a descriptor while it is walked.
MAX_DEPTH = 512

#: What is never relabelled, for the node needs its own labels there (those of opencontainers/selinux, Relabel).
_KEPT = frozenset(
    {
        "/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64",
        "/media", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var",  # noqa: S108
        "/var/lib",
        "/var/log",
    }
)  # fmt: skip


def relabel(paths: Iterable[str], label: str) -> None:
    """Give files and directory trees, named by paths without symlinks, a label, all of each; "" changes nothing.

    InvalidArgument for a directory of the node itself; FailedPrecondition where a label cannot be set. A file system
    that has no labels is fine: SELinux gives all of it one by its mount.
    """
    if not label:
        return
    kept = _KEPT | {os.path.realpath(path) for path in _KEPT}
    for path in paths:
        if os.path.normpath(path) in kept:
            raise InvalidArgument(f"selinux_relabel: {path} belongs to the node and is not relabelled")
        try:
            _relabel(path, label.encode())
        except OSError as error:
            raise FailedPrecondition(f"selinux_relabel: {path} cannot be labelled {label}: {error}") from error


def _relabel(path: str, label: bytes) -> None:
    # The path has been resolved: a step of it that is a symlink now was put there since.
    fd = linux.openat2(path, os.O_PATH, resolve=linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS)
    try:
        # The kernel's own link to what is open, not a file's: it leads to that file, whatever its name is by now.
        labelled = _set(f"/proc/self/fd/{fd}", label, follow_symlinks=True)
        if labelled and stat.S_ISDIR(os.fstat(fd).st_mode):
            _walk(fd, path, label)
    finally:
        os.close(fd)


def _walk(top: int, path: str, label: bytes) -> None:
    for place, directories, files, fd in os.fwalk(".", follow_symlinks=False, dir_fd=top):
        if len(Path(place).parts) > MAX_DEPTH:
            raise FailedPrecondition(f"selinux_relabel: {path} has more than {MAX_DEPTH} levels of directories")
        for name in (*directories, *files):
            with contextlib.suppress(FileNotFoundError):  # removed while we walk
                _set(f"/proc/self/fd/{fd}/{name}", label)


def _set(path: str, label: bytes, *, follow_symlinks: bool = False) -> bool:
    """Label one file; False on a file system that has no labels."""
    with contextlib.suppress(OSError):
        if os.getxattr(path, ATTRIBUTE, follow_symlinks=follow_symlinks).rstrip(b"\0") == label:
            return True
    try:
        os.setxattr(path, ATTRIBUTE, label, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return False
    return True
