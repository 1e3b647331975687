"""Removes trees: one in the way of a layer's entry, and whole snapshots in the background."""

import os
from dataclasses import dataclass

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Levels that are held open at a time; a container may nest directories deeper than any path reaches.
_LEVELS = 300


@dataclass
class _Level:
    fd: int
    name: bytes
    left: list[str]


def _open(name: bytes, where: int) -> _Level:
    fd = os.open(name, _OPEN, dir_fd=where)
    return _Level(fd, name, os.listdir(fd))


def remove_tree(where: int, name: bytes) -> int:
    """Remove the directory `name` in `where`, of at most 300 levels, and return how many inodes went."""
    levels = [_open(name, where)]
    gone = 0
    try:
        while levels:
            here = levels[-1]
            if not here.left:
                os.close(levels.pop().fd)
                os.rmdir(here.name, dir_fd=levels[-1].fd if levels else where)
                gone += 1
                continue
            child = os.fsencode(here.left.pop())
            try:
                os.unlink(child, dir_fd=here.fd)
                gone += 1
            except IsADirectoryError:
                levels.append(_open(child, here.fd))
    finally:
        for level in levels:
            os.close(level.fd)
    return gone


class Bin:
    """Empties the directory that is this process's root; what cannot be removed stays and is counted."""

    def __init__(self) -> None:
        """Open the root."""
        self._root = os.open("/", _OPEN)
        # Names of their own, since an earlier run may have been killed and left some.
        self._prefix = os.urandom(8).hex().encode()
        self._moved = 0
        self.removed = 0
        self.failed = 0

    def empty(self) -> dict[str, int]:
        """Remove everything, also what is thrown in meanwhile; return the counts."""
        seen: set[str] = set()
        while names := [name for name in os.listdir(self._root) if name not in seen]:
            seen.update(names)
            for name in names:
                self._remove(name)
        return {"removed": self.removed, "failed": self.failed}

    def _remove(self, name: str) -> None:
        levels = [_open(os.fsencode(name), self._root)]
        while levels:
            here = levels[-1]
            if not here.left:
                os.close(levels.pop().fd)
                self._rmdir(here.name, levels[-1].fd if levels else self._root)
                continue
            child = os.fsencode(here.left.pop())
            try:
                os.unlink(child, dir_fd=here.fd)
                self.removed += 1
            except IsADirectoryError:
                self._descend(levels, child)
            except OSError:  # an immutable file (chattr +i) of a privileged container
                self.failed += 1

    def _descend(self, levels: list[_Level], child: bytes) -> None:
        if len(levels) < _LEVELS:
            levels.append(_open(child, levels[-1].fd))
            return
        self._moved += 1
        try:
            os.rename(child, b"%s.%d" % (self._prefix, self._moved), src_dir_fd=levels[-1].fd, dst_dir_fd=self._root)
        except OSError:
            self.failed += 1

    def _rmdir(self, name: bytes, where: int) -> None:
        try:
            os.rmdir(name, dir_fd=where)
            self.removed += 1
        except OSError:  # something in it stayed
            self.failed += 1
