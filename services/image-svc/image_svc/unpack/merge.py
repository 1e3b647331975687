"""Copies a stack of layers into one tree, as overlayfs would show them: the work of the native snapshotter.

Runs confined, with the directory of all snapshots as its root. Layers hold at most a few hundred levels, so the walk
may recurse and keep two descriptors a level.
"""

import os
import stat
from collections.abc import Sequence
from typing import Any

from image_svc.unpack import removal, settle

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 64 * 1024 * 1024


class Merge:
    """Lays one layer over the tree built so far."""

    def __init__(self, layer: str, target: int) -> None:
        """Lay `layer` over the tree behind descriptor `target`."""
        self._opaque = settle.read_list(layer, "opaque")
        self._source = os.open(f"/{layer}/fs", _OPEN)
        self._target = target
        #: Where the first name of a file with several was copied to, by inode.
        self._links: dict[int, bytes] = {}

    def run(self) -> None:
        """Do it."""
        self._directory(self._source, self._target, b"")
        os.close(self._source)

    def _directory(self, source: int, target: int, path: bytes) -> None:
        for child in os.listdir(source):
            name = os.fsencode(child)
            self._entry(source, target, name, path + b"/" + name if path else name)
        settle.copy_metadata(source, target)

    def _entry(self, source: int, target: int, name: bytes, path: bytes) -> None:
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            self._subdirectory(source, target, name, path)
            return
        _remove(target, name)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            return
        if (first := self._links.get(found.st_ino)) is not None:
            os.link(first, name, src_dir_fd=self._target, dst_dir_fd=target, follow_symlinks=False)
            return
        _copy(source, target, name, found)
        if found.st_nlink > 1:
            self._links[found.st_ino] = path

    def _subdirectory(self, source: int, target: int, name: bytes, path: bytes) -> None:
        try:
            there = os.stat(name, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is not None and (path in self._opaque or not stat.S_ISDIR(there.st_mode)):
            _remove(target, name)
            there = None
        if there is None:
            os.mkdir(name, 0o700, dir_fd=target)
        below = os.open(name, _OPEN, dir_fd=source)
        made = os.open(name, _OPEN, dir_fd=target)
        try:
            self._directory(below, made, path)
        finally:
            os.close(below)
            os.close(made)


def _remove(where: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=where)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        removal.remove_tree(where, name)


def _copy(source: int, target: int, name: bytes, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        _copy_file(source, target, name, found)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    else:
        os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: bytes, found: os.stat_result) -> None:
    reader = os.open(name, _READ, dir_fd=source)
    try:
        writer = os.open(name, _CREATE, 0o600, dir_fd=target)
        try:
            # Shares blocks where the file system can (btrfs, xfs), else copies inside the kernel.
            while os.copy_file_range(reader, writer, _PIECE):
                pass
            settle.copy_metadata(reader, writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def merge(name: str, chain: Sequence[str]) -> dict[str, Any]:
    """Fill `/<name>/fs` with the layers of `chain`, base first."""
    target = os.open(f"/{name}/fs", _OPEN)
    for layer in chain:
        Merge(layer, target).run()
    os.close(target)
    return {}
