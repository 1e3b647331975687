"""Noticing that the kernel killed something in a container for want of memory."""

import os
import select
from collections.abc import Callable
from contextlib import suppress

from sandbox_svc.shim.cgroup import Cgroup
from sandbox_svc.shim.loop import READ, Loop


def watch(loop: Loop, cgroup: Cgroup, on_event: Callable[[], object]) -> int:
    """Call `on_event` when the cgroup runs out of memory; return the descriptor to `unwatch`, -1 without a cgroup.

    Version 1 signals an eventfd that was registered for memory.oom_control, version 2 wakes those who poll
    memory.events for priority data (kernel documentation, cgroup-v1/memory.rst section 10 and cgroup-v2.rst).
    """
    directory = cgroup.directory("memory")
    if not directory or os.path.ismount(directory):
        return -1
    try:
        return _watch_unified(loop, directory, on_event) if cgroup.unified else _watch_v1(loop, directory, on_event)
    except OSError:
        return -1  # gone already, or without the memory controller: the count at exit still tells


def unwatch(loop: Loop, fd: int) -> None:
    """End a watch."""
    if fd >= 0:
        loop.unwatch(fd)
        os.close(fd)


def _watch_unified(loop: Loop, directory: str, on_event: Callable[[], object]) -> int:
    fd = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
    os.read(fd, 4096)

    def changed(_: int) -> None:
        try:
            os.pread(fd, 4096, 0)  # reading re-arms the poll
        except OSError:
            loop.unwatch(fd)  # the cgroup was removed
        on_event()

    loop.watch(fd, select.EPOLLPRI, changed)
    return fd


def _watch_v1(loop: Loop, directory: str, on_event: Callable[[], object]) -> int:
    control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        registrar = os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(registrar, f"{fd} {control}".encode())
        finally:
            os.close(registrar)
    except OSError:
        os.close(fd)
        raise
    finally:
        os.close(control)

    def signalled(_: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(fd)
        on_event()

    loop.watch(fd, READ, signalled)
    return fd
