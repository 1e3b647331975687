"""A rootfs's /etc/passwd and /etc/group, read from the layers of a mount plan before anything is mounted.

The layers come from an image, so no path in them is trusted: each is opened with its layer as the root
(openat2(2), RESOLVE_IN_ROOT), only regular files are read, and no more than tells that they are too long.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence

from bulkhead.proto import images_pb2
from sandbox_svc import linux
from sandbox_svc.oci.model import RootfsUsers
from sandbox_svc.oci.users import MAX_FILE

#: One byte more than is taken: a file that were cut would end in a line with another id.
SIZE_LIMIT = MAX_FILE + 1


def read(mounts: Sequence[images_pb2.Mount]) -> RootfsUsers:
    """Return both files as the mounted rootfs would show them; None for one that is not there."""
    stack = layers(mounts)
    return RootfsUsers(passwd=_find(stack, "passwd"), group=_find(stack, "group"))


def layers(mounts: Sequence[images_pb2.Mount]) -> list[str]:
    """Return the directories of a rootfs, topmost first."""
    for mount in mounts:
        if mount.target not in ("", "/"):
            continue
        if mount.type != "overlay":
            return [mount.source]
        named = dict(option.partition("=")[::2] for option in mount.options if "=" in option)
        upper = [named["upperdir"]] if "upperdir" in named else []
        return upper + [part for part in named.get("lowerdir", "").split(":") if part]
    return []


def _find(stack: Iterable[str], name: str) -> bytes | None:
    for layer in stack:
        try:
            root = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            final, data = _look(root, name)
        finally:
            os.close(root)
        if final:
            return data
    return None


def _look(root: int, name: str) -> tuple[bool, bytes | None]:
    """Return whether this layer decides about etc/<name>, and the file if it has it."""
    try:
        fd = linux.openat2(
            f"etc/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, dirfd=root, resolve=linux.RESOLVE_IN_ROOT
        )
    except OSError as error:
        # A whiteout is a device without a driver: ENXIO on opening it (overlayfs.rst).
        if error.errno == errno.ENXIO:
            return True, None
        return _opaque(root), None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return True, None
        with os.fdopen(fd, "rb", closefd=False) as file:
            return True, file.read(SIZE_LIMIT)
    finally:
        os.close(fd)


def _opaque(root: int) -> bool:
    """Tell whether this layer's etc hides those below."""
    try:
        fd = linux.openat2("etc", os.O_RDONLY | os.O_NONBLOCK, dirfd=root, resolve=linux.RESOLVE_IN_ROOT)
    except OSError as error:
        return error.errno == errno.ENXIO
    try:
        for attribute in ("trusted.overlay.opaque", "user.overlay.opaque"):
            with contextlib.suppress(OSError):
                return os.getxattr(fd, attribute) == b"y"
    finally:
        os.close(fd)
    return False
