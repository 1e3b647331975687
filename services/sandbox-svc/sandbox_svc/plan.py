"""What image-svc may ask to have mounted: its plans come from a process without rights, and root carries them out.

A plan that named any other directory would hand the node's own file system to a container. Snapshots of Bulkhead's own
lie in one directory, those of a proxy snapshotter below the one that the configuration has for it.
"""

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from bulkhead import exports
from bulkhead.errors import PermissionDenied
from bulkhead.proto import images_pb2
from sandbox_svc import linux

#: Tells of a text whether it is something that a plan may hold.
_Test = Callable[[str], object]
#: Options of an overlay that change nothing about where its files come from.
_OWN, _FOREIGN = ("index=off",), ("index=off", "userxattr", "volatile")


def check(plan: images_pb2.PrepareResponse, snapshots: Path) -> None:
    """Raise PermissionDenied unless the plan is made of snapshots in that directory, which is root's alone."""
    own = rf"{re.escape(str(snapshots))}/[0-9a-z]+"
    tree, work = re.compile(rf"{own}/fs").fullmatch, re.compile(rf"{own}/work").fullmatch
    _check(plan, tree, work, _OWN)


def check_foreign(plan: images_pb2.PrepareResponse, root: Path) -> None:
    """Raise PermissionDenied unless the plan is made of directories below that of a proxy snapshotter.

    No step of their paths may be a link: within a snapshot anybody may have made one.
    """

    def inside(path: str) -> bool:
        relative = exports.below(root, path)
        rules = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
        try:
            top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.close(linux.openat2(relative, os.O_PATH | os.O_DIRECTORY, dirfd=top, resolve=rules))
            finally:
                os.close(top)
        except OSError:
            return False
        return True

    _check(plan, inside, inside, _FOREIGN)


def _check(plan: images_pb2.PrepareResponse, tree: _Test, work: _Test, flags: Collection[str]) -> None:
    for mount in plan.mounts:
        if mount.type not in ("bind", "overlay"):
            raise _refused(f"type {mount.type!r}")
        bind = mount.type == "bind"
        if mount.target or not (tree(mount.source) if bind else mount.source == "overlay"):
            raise _refused(f"{mount.source!r} at {mount.target!r}")
        for option in mount.options:
            if not (re.fullmatch(r"r?bind|ro|rw", option) if bind else option in flags or _overlay(option, tree, work)):
                raise _refused(f"option {option[:300]!r}")
    if plan.upper_dir and not tree(plan.upper_dir):
        raise _refused(f"upper directory {plan.upper_dir[:300]!r}")


def _overlay(option: str, tree: _Test, work: _Test) -> bool:
    name, _, value = option.partition("=")
    if name == "lowerdir":
        return all(tree(path) for path in value.split(":"))
    if name == "upperdir":
        return bool(tree(value))
    return name == "workdir" and bool(work(value))


def _refused(what: str) -> PermissionDenied:
    return PermissionDenied(f"image-svc asks for a mount that is not made of its snapshots: {what}")
