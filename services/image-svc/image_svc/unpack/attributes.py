"""Extended attributes of a layer's files, and the last pass that gives its directories their metadata."""

import errno
import os
from collections.abc import Mapping

from image_svc.unpack.paths import PathList
from image_svc.unpack.tree import Directory

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Mode of a directory that an entry's path implies, in the first layer; in others it takes that of the one below.
IMPLIED = 0o755
_ACLS = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))


def wanted(name: bytes) -> bool:
    """Tell whether a layer may set this attribute.

    trusted.* and user.overlay.* could redirect overlayfs, and labels (security.selinux, security.ima) are the node's.
    """
    if name.startswith(b"user."):
        return not name.startswith(b"user.overlay.")
    return name == b"security.capability" or name in _ACLS


def set_xattrs(fd: int, xattrs: Mapping[bytes, bytes]) -> int:
    """Set the attributes that a layer may set and return how many were left out."""
    ignored = 0
    for name, value in xattrs.items():
        if not wanted(name):
            ignored += 1
            continue
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno != errno.ENOTSUP:  # tmpfs knows no user.*; containerd goes on as well
                raise
            ignored += 1
    return ignored


class Finisher:
    """Walks the directories of a layer; lists the implied ones (parents first) and the opaque ones.

    An implied directory was made as it shall be until it is settled, so only described ones are opened.
    """

    def __init__(self, implicit: int, opaque: int) -> None:
        """Write the lists to these two descriptors."""
        self.implicit = PathList(implicit)
        self.opaque = PathList(opaque)
        self.ignored_xattrs = 0

    def run(self, root: Directory, root_fd: int) -> None:
        """Do it; an open descriptor for each level of the walk, so the depth must be bounded."""
        names, fds = [b""], [root_fd]
        todo: list[tuple[Directory, int]] = [(root, 0)]
        while todo:
            directory, level = todo.pop()
            del names[level:]
            names.append(directory.name)
            while len(fds) > max(level, 1):
                os.close(fds.pop())
            if directory.opaque:
                self.opaque.add(directory.path())
            if directory.metadata is None:
                self.implicit.add(directory.path())
            if directory.metadata is not None or not level:  # the root may be somebody else's
                while len(fds) <= level:
                    fds.append(os.open(names[len(fds)], _OPEN, dir_fd=fds[-1]))
                self._describe(directory, fds[level])
            todo.extend((child, level + 1) for child in directory.children.values() if isinstance(child, Directory))
        while len(fds) > 1:
            os.close(fds.pop())
        self.implicit.flush()
        self.opaque.flush()

    def _describe(self, directory: Directory, fd: int) -> None:
        if directory.metadata is None:
            os.fchmod(fd, IMPLIED)
            return
        mode, uid, gid, mtime, xattrs = directory.metadata
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
        if xattrs:
            self.ignored_xattrs += set_xattrs(fd, xattrs)
        os.utime(fd, ns=(mtime, mtime))
