"""The directory a layer is unpacked into: open descriptors, counts, and room made for what replaces something."""

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar

from bulkhead.errors import BulkheadError, Internal, InvalidArgument, ResourceExhausted
from image_svc.unpack import linux, removal
from image_svc.unpack.attributes import IMPLIED
from image_svc.unpack.protocol import DiskFull, Limits
from image_svc.unpack.tar import shown
from image_svc.unpack.tree import Directory, Tree

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: A directory by its own name, to make and change names in.
_NAMED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE = 4096
#: Directories kept open: below RLIMIT_NOFILE with room for the walks.
_HANDLES = 400

_T = TypeVar("_T")


class Disk:
    """What this process's root directory holds of the layer so far."""

    def __init__(self, limits: Limits) -> None:
        """Start with an empty directory."""
        self._limits = limits
        self.root = os.open("/", _OPEN)
        self.tree = Tree(self._imply, limits.path_depth, limits.path_length)
        self.tree.root.handle = self.root
        self._handles: list[Directory] = []
        self.entries = 0
        self.bytes = _PAGE
        self.inodes = 1
        self.whiteouts = 0

    def count(self) -> None:
        """Count one more entry, or raise ResourceExhausted."""
        self.entries += 1
        if self.entries > self._limits.entries:
            raise ResourceExhausted(f"layer has more than {self._limits.entries} entries")

    def handle(self, directory: Directory) -> int:
        """Return an open descriptor of a directory, kept until too many are."""
        if directory.handle < 0:
            self.reserve(1)
            above = directory.parent
            if above is not None and above.handle >= 0:
                directory.handle = os.open(directory.name, _NAMED, dir_fd=above.handle)
            else:
                directory.handle = linux.openat2(self.root, directory.path(), os.O_PATH | os.O_DIRECTORY)
            self._handles.append(directory)
        return directory.handle

    def reserve(self, wanted: int) -> None:
        """Make sure that so many directories can be opened before one is closed."""
        if len(self._handles) + wanted > _HANDLES:
            self.close()

    def close(self) -> None:
        """Close the descriptors of all directories but the root."""
        for directory in self._handles:
            if directory.handle >= 0:
                os.close(directory.handle)
                directory.handle = -1
        self._handles.clear()

    def place(self, parent: Directory, base: bytes, make: Callable[[int], _T]) -> _T:
        """Call `make(descriptor of parent)`, a second time with what stands in its way removed."""
        self.count()
        self.inodes += 1
        try:
            return make(self.handle(parent))
        except FileExistsError:
            self._clear(parent, base)
            return make(self.handle(parent))

    def grow(self, size: int) -> None:
        """Count a file's bytes, in whole blocks."""
        self.bytes += _blocks(size)

    def make_directory(self, parent: Directory, base: bytes) -> Directory:
        """Make a directory in place of whatever is there; opaque if that was a whiteout."""
        opaque = False
        try:
            self._mkdir(parent, base, 0o700)
        except FileExistsError:
            opaque = self._clear(parent, base)
            self._mkdir(parent, base, 0o700)
        child = self.tree.add(parent, base)
        child.opaque = opaque
        return child

    def white_out(self, parent: Directory, base: bytes) -> None:
        """Hide a name of the layers below, unless this layer has a file of that name, which hides it by being there."""
        self.count()
        try:
            os.mknod(base, stat.S_IFCHR, os.makedev(0, 0), dir_fd=self.handle(parent))
        except FileExistsError:
            return
        self.whiteouts += 1
        self.inodes += 1

    def _mkdir(self, parent: Directory, base: bytes, mode: int) -> None:
        self.count()
        os.mkdir(base, mode, dir_fd=self.handle(parent))
        self.inodes += 1
        self.bytes += _PAGE

    def _imply(self, parent: Directory, base: bytes) -> bool:
        """Make a directory that an entry's path needs and no entry described; True if a whiteout stood there."""
        try:
            self._mkdir(parent, base, IMPLIED)
        except FileExistsError:
            found = os.stat(base, dir_fd=self.handle(parent), follow_symlinks=False)
            if not _is_whiteout(found):
                raise InvalidArgument(f"{shown(base)} in its path is not a directory") from None
            self._clear(parent, base)
            self._mkdir(parent, base, IMPLIED)
            return True
        return False

    def _clear(self, parent: Directory, base: bytes) -> bool:
        """Remove what stands in the way of a new entry and return whether it was a whiteout."""
        where = self.handle(parent)
        found = os.stat(base, dir_fd=where, follow_symlinks=False)
        self.tree.forget(parent, base, os.close)
        if stat.S_ISDIR(found.st_mode):
            self.inodes -= removal.remove_tree(where, base)
            return False
        os.unlink(base, dir_fd=where)
        if found.st_nlink == 1:
            self.inodes -= 1
            if stat.S_ISREG(found.st_mode):
                self.bytes -= _blocks(found.st_size)
        return _is_whiteout(found)


def _blocks(size: int) -> int:
    return size + -size % _PAGE


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


_ERRORS: dict[int | None, type[BulkheadError]] = {
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
    errno.EFBIG: ResourceExhausted,
    errno.EMLINK: ResourceExhausted,
    errno.E2BIG: ResourceExhausted,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.EINVAL: InvalidArgument,
    errno.EPERM: InvalidArgument,
    errno.ENOENT: InvalidArgument,
    errno.ENOTDIR: InvalidArgument,
    errno.ELOOP: InvalidArgument,
}


def explain(error: OSError, name: bytes) -> BulkheadError:
    """Return what to answer for a system call that failed on an entry: the disk's fault, the layer's, or ours."""
    return _ERRORS.get(error.errno, Internal)(f"entry {shown(name)}: {error.strerror or error}")
