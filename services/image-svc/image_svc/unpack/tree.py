"""The directories of a layer as its entries build them up, and the way from a path to one of them.

The worker starts from an empty directory, so it knows every directory and symbolic link there is without asking the
kernel. A path is resolved here, by dictionary, and the result has no link in it any more; what then reaches the kernel
is refused there should it ever hold one. Finding a directory costs one look-up however deep it lies, forgetting one
costs as much as making it did, so no sequence of entries takes more than linear time.
"""

from collections.abc import Callable

from bulkhead.errors import InvalidArgument, ResourceExhausted
from image_svc.unpack.tar import shown

#: Paths remembered to save the walk; more than any real layer has directories open at a time.
_REMEMBERED = 65_536
#: Symbolic links followed within one path, as in the kernel (MAXSYMLINKS).
_LINKS = 40
#: Components a path may come to hold while its links are followed.
_STEPS = 1024


class Directory:
    """A directory of this layer."""

    __slots__ = ("children", "depth", "handle", "length", "live", "metadata", "name", "opaque", "parent")

    def __init__(self, name: bytes, parent: "Directory | None") -> None:
        self.name = name
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 0
        #: Bytes of the path.
        self.length: int = parent.length + 1 + len(name) if parent else 0
        #: Subdirectories, and the targets of symbolic links; other files are not kept.
        self.children: dict[bytes, Directory | bytes] = {}
        #: Mode, uid, gid, mtime in nanoseconds and xattrs; None as long as no entry described it.
        self.metadata: tuple[int, int, int, int, dict[bytes, bytes]] | None = None
        self.opaque = False
        #: False once it was removed again.
        self.live = True
        #: An open descriptor, or -1.
        self.handle = -1

    def path(self) -> bytes:
        """Return the path from the layer's root, b"." for the root itself."""
        parts: list[bytes] = []
        here = self
        while here.parent is not None:
            parts.append(here.name)
            here = here.parent
        return b"/".join(reversed(parts)) or b"."


class Tree:
    """All directories of a layer.

    `imply(parent, name)` makes one on disk that an entry's path takes for granted, and returns whether it is opaque.
    """

    def __init__(self, imply: Callable[[Directory, bytes], bool], depth: int, length: int) -> None:
        """Start with the root; paths have at most `depth` components and `length` bytes."""
        self.root = Directory(b"", None)
        self._imply = imply
        self._depth = depth
        self._length = length
        self._known: dict[bytes, Directory] = {}

    def directory(self, path: bytes) -> Directory:
        """Return the directory at a path, making those that are missing.

        Links are followed within the layer only: one that names something outside, or not there, is InvalidArgument.
        """
        known = self._known.get(path)
        if known is not None and known.live:
            return known
        return self._walk(path, self._make)

    def find(self, path: bytes) -> Directory | None:
        """Return the directory at a path, or None if this layer has none there."""
        known = self._known.get(path)
        if known is not None and known.live:
            return known
        try:
            return self._walk(path, self._refuse)
        except _Missing:
            return None

    def add(self, parent: Directory, name: bytes) -> Directory:
        """Record a directory that was made on disk."""
        child = Directory(name, parent)
        if child.depth > self._depth:
            raise ResourceExhausted(f"path {shown(child.path())} is deeper than {self._depth} directories")
        if child.length > self._length:
            raise ResourceExhausted(f"path {shown(child.path())} is longer than {self._length} bytes")
        parent.children[name] = child
        return child

    def forget(self, parent: Directory, name: bytes, close: Callable[[int], None]) -> None:
        """Drop a directory with all below it, or a link, that was removed from disk; `close` gets open handles."""
        child = parent.children.pop(name, None)
        gone = [child] if isinstance(child, Directory) else []
        while gone:
            directory = gone.pop()
            directory.live = False
            directory.parent = None
            if directory.handle >= 0:
                close(directory.handle)
                directory.handle = -1
            gone.extend(below for below in directory.children.values() if isinstance(below, Directory))
            directory.children = {}

    def _make(self, parent: Directory, name: bytes) -> Directory:
        opaque = self._imply(parent, name)
        child = self.add(parent, name)
        child.opaque = opaque
        return child

    def _refuse(self, parent: Directory, name: bytes) -> Directory:
        raise _Missing

    def _walk(self, path: bytes, missing: Callable[[Directory, bytes], Directory]) -> Directory:
        here, left = self.root, path
        above, _, base = path.rpartition(b"/")
        known = self._known.get(above)
        if known is not None and known.live and base not in (b"", b".", b".."):
            here, left = known, base
        # Components still to go, last first, each with whether a link's target brought it in.
        todo = [(part, False) for part in reversed(components(left))]
        links = 0
        while todo:
            part, from_link = todo.pop()
            if part == b"..":  # only a link's target may hold one; above the root is the root, as in chroot(2)
                here = here.parent or here
                continue
            child = here.children.get(part)
            if isinstance(child, Directory):
                here = child
            elif child is None:
                if from_link:
                    raise InvalidArgument(f"path {shown(path)} leads out of the layer by a symbolic link")
                here = missing(here, part)
            else:
                links += 1
                if child.startswith(b"/"):
                    here = self.root
                todo.extend((step, True) for step in reversed(child.split(b"/")) if step not in (b"", b"."))
                if links > _LINKS or len(todo) > _STEPS:
                    raise InvalidArgument(f"path {shown(path)} goes through too many symbolic links")
        if not links:  # a link may come to mean something else
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[path] = here
        return here


class _Missing(Exception):
    """A directory that `find` may not make."""


def components(path: bytes) -> list[bytes]:
    """Split a path from a layer, read from the layer's root; InvalidArgument for one that climbs with `..`."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidArgument(f'path {shown(path)} climbs with ".."')
    return parts
