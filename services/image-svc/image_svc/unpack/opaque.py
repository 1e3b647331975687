"""Marks directories opaque for overlayfs: the one step after unpacking that takes CAP_SYS_ADMIN.

It runs in a process of its own that sees nothing but the layer, reads nothing of it but this list, and cannot mount.
"""

import os
from typing import Any

from bulkhead.errors import InvalidArgument
from image_svc.unpack import linux, paths
from image_svc.unpack.tar import shown

ATTRIBUTE = b"trusted.overlay.opaque"


def mark(listed: int) -> dict[str, Any]:
    """Mark the directories listed behind a descriptor, paths from this process's root."""
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    count = 0
    for path in paths.read(listed):
        try:
            fd = linux.openat2(root, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise InvalidArgument(f"opaque directory {shown(path)}: {error.strerror}") from error
        try:
            os.setxattr(fd, ATTRIBUTE, b"y")
        finally:
            os.close(fd)
        count += 1
    return {"opaque": count}
