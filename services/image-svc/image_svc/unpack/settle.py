"""Gives directories that a layer only implied the metadata they have in the layers below.

A layer that holds etc/priv/key and no entry for etc/priv would else open a directory of mode 0700 to everybody, for
overlayfs shows the topmost directory's metadata. Where a lower layer has a file or a link at the path, the implied
directory replaces it, as with containerd. Runs confined, with the directory of all snapshots as its root.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

from image_svc.unpack import attributes, linux, paths

#: Levels of a path that may each leave a look to the one above: a look is a call within a call.
_NESTED = 64
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Lower:
    """One settled layer, opened when it is first looked at."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tree = -1
        self._opaque: set[bytes] | None = None

    def open(self, path: bytes) -> int:
        """Open a directory of this layer; OSError says why it cannot be."""
        if self._tree < 0:
            self._tree = os.open(f"/{self._name}/fs", _OPEN)
        return linux.openat2(self._tree, path, os.O_RDONLY | os.O_DIRECTORY)

    def hides(self, path: bytes) -> bool:
        """Tell whether this layer hides what layers below it have at a path, by an opaque directory above it."""
        if self._opaque is None:
            self._opaque = read_list(self._name, "opaque")
        return bool(self._opaque) and not self._opaque.isdisjoint(paths.ancestors(path))

    def names(self) -> set[bytes]:
        """Return what is in the layer's root directory."""
        root = self.open(b".")
        try:
            return {os.fsencode(name) for name in os.listdir(root)}
        finally:
            os.close(root)


def read_list(name: str, kind: str) -> set[bytes]:
    """Return a list of paths kept beside a layer, empty if there is none."""
    try:
        fd = os.open(f"/{name}/{kind}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return set()
    try:
        return set(paths.read(fd))
    finally:
        os.close(fd)


class _Visible:
    """The layers whose directory at one path can be seen, the nearest first: looked for only as far as asked."""

    def __init__(self, found: Iterator[Lower]) -> None:
        self._known: list[Lower] = []
        self._more = found

    def __iter__(self) -> Iterator[Lower]:
        position = 0
        while True:
            if position == len(self._known):
                found = next(self._more, None)
                if found is None:
                    return
                self._known.append(found)
            yield self._known[position]
            position += 1


class Search:
    """Finds directories in the layers beneath one layer, the nearest first.

    A layer without a directory has none below it either. So the ways to the last path are kept, and paths that come
    parents first, as a layer's lists have them, cost no look where there can be nothing.
    """

    def __init__(self, lowers: Sequence[Lower]) -> None:
        self._way = [(b"", _Visible(_seen(lowers, b".")))]

    def find(self, path: bytes) -> int:
        """Return the nearest lower directory at a path, opened, or -1 if there is none to be seen."""
        while not path.startswith(self._way[-1][0]):
            self._way.pop()
        begun, above = self._way[-1]
        for step in path[len(begun) :].split(b"/") if path != b"." else ():
            begun += step + b"/"
            above = _Visible(_seen(above, begun[:-1]))
            self._way.append((begun, above))
            if not len(self._way) % _NESTED:
                list(above)
        nearest = next(iter(above), None)
        return nearest.open(path) if nearest else -1


def _seen(above: Iterable[Lower], path: bytes) -> Iterator[Lower]:
    """Yield those of the layers that have a directory at a path, up to one that hides it in those beneath."""
    for lower in above:
        try:
            os.close(lower.open(path))
        except OSError as error:
            # A whiteout, a file or a link stands at the path and hides what lies deeper.
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return
            if error.errno != errno.ENOENT:
                raise
        else:
            yield lower
        if lower.hides(path):
            return


def copy_metadata(source: int, target: int) -> None:
    """Give one open file the owner, mode, attributes and times of another."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    names = [os.fsencode(name) for name in os.listxattr(source)]
    attributes.set_xattrs(target, {name: os.getxattr(source, name) for name in names if attributes.wanted(name)})
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def settle_all(chain: Sequence[str], pending: Sequence[str]) -> dict[str, Any]:
    """Settle the pending layers of a chain (base first).

    Returns how many directories changed, and the layers whose list of opaque directories has grown.
    """
    opened = [Lower(name) for name in chain]
    changed, grown = 0, []
    for position, name in enumerate(chain):
        if name in pending:
            own, lowers = opened[position], opened[:position][::-1]
            changed += settle(own, name, lowers)
            if own.hides(b".") and _close_root(own, name, lowers):
                grown.append(name)
    return {"settled": changed, "grown": grown}


def _close_root(own: Lower, name: str, lowers: Sequence[Lower]) -> bool:
    """Close a layer's opaque root, and tell whether its list of directories to be marked has grown."""
    listed = os.open(f"/{name}/opaque", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return bool(close_root(own, _names_beneath(lowers), listed))
    finally:
        os.close(listed)


def _names_beneath(lowers: Iterable[Lower]) -> set[bytes]:
    """Return what the roots of layers hold, the nearest first, down to one whose own root is opaque."""
    found: set[bytes] = set()
    for lower in lowers:
        found |= lower.names()
        if lower.hides(b"."):
            break
    return found


def close_root(own: Lower, beneath: Set[bytes], listed: int) -> int:
    """Hide what lies beneath an opaque root name by name, since overlayfs looks for no mark on a root.

    A directory that is there on both sides is added to the list behind a descriptor, to be marked; returns how many.
    """
    kept = own.names() & beneath
    root = own.open(b".")
    before = os.fstat(root)
    marks = paths.PathList(listed)
    for name in sorted(beneath):
        if name not in kept:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=root)
        elif stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
            marks.add(name)
    os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))  # as the layer has it, or the last pass gave it
    marks.flush()
    os.close(root)
    return marks.count


def settle(own: Lower, name: str, lowers: Sequence[Lower]) -> int:
    """Settle one layer on those below it, the nearest first, and return how many directories changed."""
    listed = os.open(f"/{name}/implicit", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return settle_listed(own, lowers, listed)
    finally:
        os.close(listed)


def settle_listed(own: Lower, lowers: Sequence[Lower], listed: int) -> int:
    """Settle the directories whose list is behind a descriptor, and return how many changed."""
    settled = 0
    search = Search(lowers)
    for path in paths.read(listed):
        source = search.find(path)
        if source < 0:
            continue
        target = own.open(path)
        try:
            copy_metadata(source, target)
        finally:
            os.close(source)
            os.close(target)
        settled += 1
    return settled
