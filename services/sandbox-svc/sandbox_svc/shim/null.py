"""The standard input of a container that has none: a null device of the pod's own.

crun before 1.9 gives every standard stream that is no terminal to the container's user with fchown(2), devices too.
Handed the host's /dev/null, it would change that node's owner for the whole host.
"""

import logging
import os
import stat

from sandbox_svc import linux

logger = logging.getLogger(__name__)

_NULL = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt


def open_null() -> int:
    """Return a null device open for reading and writing, on a file system that nothing else sees.

    Where the kernel or a lack of rights forbids that, it is the host's.
    """
    try:
        context = linux.fsopen("tmpfs")
        try:
            mount = linux.fsmount(context)
        finally:
            os.close(context)
        try:
            os.mknod("null", stat.S_IFCHR | 0o666, _NULL, dir_fd=mount)
            os.chmod("null", 0o666, dir_fd=mount)  # noqa: S103 - as open to all as the host's, past the umask
            return os.open("null", os.O_RDWR | os.O_CLOEXEC, dir_fd=mount)
        finally:
            os.close(mount)
    except OSError as error:
        logger.warning("no null device of our own, the host's is used: %s", error)
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def replace(fd: int) -> None:
    """Put a null device of this process's own in the place of an open descriptor."""
    own = open_null()
    os.dup2(own, fd, inheritable=False)
    os.close(own)
