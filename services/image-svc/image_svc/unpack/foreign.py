"""Unpacks layers for proxy snapshotters: into the directory that one of them has prepared, without mounting it.

The snapshotter's mounts are an overlay or a bind mount. What would be the upper directory is filled as Bulkhead's own
layers are, with overlayfs's whiteouts, as containerd does with such mounts. image-svc names the directories; they
count only below the root that the configuration has for that snapshotter, and only an empty one is written into.
"""

import functools
import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bulkhead import exports
from bulkhead.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from image_svc.unpack import confine, linux, opaque, paths, protocol, settle
from image_svc.unpack.confine import Confinement
from image_svc.unpack.settle import Lower
from image_svc.unpack.worker import Step

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 600.0
_SYNC_SECONDS = 300.0
#: A lower directory may be a mount of its own, such as a lazily fetched layer's.
_RESOLVE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS


class Foreign:
    """The directories of the proxy snapshotters that are configured, by name."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self._roots = dict(roots)

    def root(self, snapshotter: Any) -> Path:
        """Return a snapshotter's directory; PermissionDenied for one that the configuration does not name."""
        found = self._roots.get(snapshotter) if isinstance(snapshotter, str) else None
        if found is None:
            named = str(snapshotter)[:100]
            raise PermissionDenied(f"snapshotter {named!r} is no proxy plugin with exports.root in the configuration")
        return found

    def place(self, snapshotter: Any, path: Any, lowers: Any) -> "Place":
        """Open where a layer goes; `lowers` are the directories of the layers beneath, the nearest first."""
        root = self.root(snapshotter)
        if not isinstance(lowers, list) or len(lowers) > protocol.MAX_LAYERS:
            raise InvalidArgument(f"lower directories: expected a list of at most {protocol.MAX_LAYERS} paths")
        wanted = exports.below(root, str(path))
        below = [os.fsencode(exports.below(root, str(each))) for each in lowers]
        try:
            top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise FailedPrecondition(f"{root} of snapshotter {snapshotter}: {error.strerror}") from error
        try:
            target = linux.openat2(top, os.fsencode(wanted), os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
        except OSError as error:
            os.close(top)
            raise FailedPrecondition(f"{path} of snapshotter {snapshotter}: {os.strerror(error.errno or 0)}") from error
        place = Place(top, target, os.fsencode(wanted), below)
        if os.listdir(target):
            place.close()
            raise FailedPrecondition(f"{path} of snapshotter {snapshotter} is not empty")
        return place


class Place:
    """An empty directory for one layer, with the lists that its unpacking leaves to the steps after it."""

    def __init__(self, top: int, target: int, path: bytes, lowers: Sequence[bytes]) -> None:
        self.target = target
        self.implicit = os.memfd_create("implicit")
        self.opaque = os.memfd_create("opaque")
        self._top = top
        self._path = path
        self._lowers = lowers

    def close(self) -> None:
        """Let go of everything."""
        for fd in (self._top, self.target, self.implicit, self.opaque):
            os.close(fd)

    def finish(self, implied: int) -> Generator[Step, dict[str, Any], None]:
        """Yield the steps after unpacking: what depends on the layers beneath, and the way to disk."""
        if self._lowers and (implied or os.fstat(self.opaque).st_size):
            yield from self._upon_lowers()
        yield Step(Confinement(self.target, 0, seconds=_SYNC_SECONDS), _sync, _SYNC_SECONDS)

    def _upon_lowers(self) -> Generator[Step, dict[str, Any], None]:
        """Yield the steps that give implied directories their metadata and have an opaque root hide what it must."""
        lists = (self.implicit, self.opaque)
        self._rewind()
        seen = Confinement(self._top, confine.FILES, lists, seconds=_SETTLE_SECONDS)
        work: Callable[[], dict[str, Any]] = functools.partial(_settle, self._path, self._lowers, *lists)
        answer = yield Step(seen, work, _SETTLE_SECONDS)
        if answer.get("empty"):
            logger.warning(
                "%s layers below %s look empty from here; if they are mounts, propagation must be shared for this"
                " process to see them: without them directories that a layer implies have mode 0755, and an opaque"
                " root hides nothing of theirs",
                int(answer["empty"]),
                os.fsdecode(self._path),
            )
        if answer.get("grown"):
            self._rewind()
            marking = Confinement(self.target, confine.OPAQUE, (self.opaque,), seconds=_SETTLE_SECONDS)
            yield Step(marking, functools.partial(opaque.mark, self.opaque), _SETTLE_SECONDS)

    def _rewind(self) -> None:
        for fd in (self.implicit, self.opaque):
            os.lseek(fd, 0, os.SEEK_SET)


class _Foreign(Lower):
    """A layer of the snapshotter, by its path from this process's root.

    Which of its directories are opaque is not known: reading that takes a privilege. So metadata may come from a layer
    that is hidden, which containerd does not look at either.
    """

    def __init__(self, path: bytes) -> None:
        super().__init__("")
        self._path = path

    def open(self, path: bytes) -> int:
        if self._tree < 0:
            root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._tree = linux.openat2(root, self._path, os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
            os.close(root)
        return super().open(path)

    def hides(self, path: bytes) -> bool:
        return False


def _settle(path: bytes, lowers: Sequence[bytes], implicit: int, listed: int) -> dict[str, Any]:
    """Give implied directories the metadata they have beneath, and close an opaque root.

    Returns how many directories changed, how many are to be marked opaque besides those that were, and in how many of
    the layers beneath nothing is to be seen.
    """
    own, below = _Foreign(path), [_Foreign(each) for each in lowers]
    settled = settle.settle_listed(own, below, implicit)
    beneath = [each.names() for each in below]
    opaque_root = b"." in set(paths.read(listed))
    grown = settle.close_root(own, set().union(*beneath), listed) if opaque_root else 0
    return {"settled": settled, "grown": grown, "empty": sum(not names for names in beneath)}


def _sync() -> dict[str, Any]:
    linux.syncfs(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    return {}
