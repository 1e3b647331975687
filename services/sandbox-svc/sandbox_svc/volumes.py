"""Image-defined volumes: directories of the node that begin as a copy of what the image has there.

The copy is read from the layers themselves, whiteouts and opaque directories observed (overlayfs.rst), so that
nothing need be mounted and nothing is left mounted whatever happens.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from bulkhead.proto import images_pb2
from sandbox_svc import linux
from sandbox_svc.oci.model import ImageVolume
from sandbox_svc.rootfs_users import layers


def fill(volumes: Sequence[ImageVolume], mounts: Sequence[images_pb2.Mount]) -> None:
    """Copy the image's content into each volume, layer by layer from the bottom up; the directories exist."""
    stack = [Path(layer) for layer in reversed(layers(mounts))]
    for volume in volumes:
        for layer in stack:
            _overlay(layer, volume.container_path, Path(volume.host_path))


def _overlay(layer: Path, inside: str, target: Path) -> None:
    """Put one layer's part of a directory over what the layers below have put there."""
    try:
        root = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fd = linux.openat2(
            inside.lstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY, dirfd=root, resolve=linux.RESOLVE_IN_ROOT
        )
    except OSError:
        return
    finally:
        os.close(root)
    try:
        _merge(Path(f"/proc/self/fd/{fd}"), target)
        status = os.fstat(fd)
        os.chown(target, status.st_uid, status.st_gid)
        target.chmod(stat.S_IMODE(status.st_mode))
    finally:
        os.close(fd)


def _merge(source: Path, target: Path) -> None:
    if _opaque(source):
        for hidden in target.iterdir():
            _remove(hidden)
    for entry in os.scandir(source):
        goal = target / entry.name
        if _is_whiteout(entry):
            _remove(goal)
        elif entry.is_dir(follow_symlinks=False):
            if not goal.is_dir() or goal.is_symlink():
                _remove(goal)
                goal.mkdir()
            _merge(Path(entry.path), goal)
            _copy_owner(entry, goal)
        else:
            _remove(goal)
            _copy(entry, goal)


def _opaque(directory: Path) -> bool:
    for attribute in ("trusted.overlay.opaque", "user.overlay.opaque"):
        with contextlib.suppress(OSError):
            return os.getxattr(directory, attribute) == b"y"
    return False


def _is_whiteout(entry: "os.DirEntry[str]") -> bool:
    status = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy(entry: "os.DirEntry[str]", goal: Path) -> None:
    """Copy a file, link or special file with owner, mode, times and extended attributes."""
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
        shutil.copy2(entry.path, goal, follow_symlinks=False)
    elif stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        os.mknod(goal, status.st_mode, status.st_rdev)
    else:
        return  # a socket is nothing without its process
    _copy_owner(entry, goal)


def _copy_owner(entry: "os.DirEntry[str]", goal: Path) -> None:
    status = entry.stat(follow_symlinks=False)
    os.chown(goal, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        # chown clears the set-id bits, so the mode comes after it.
        goal.chmod(stat.S_IMODE(status.st_mode))
