"""Which process is which: a pid counts only together with its start time and the boot it was seen in."""

import contextlib
import functools
import os
import select
import signal
import time
from pathlib import Path

from sandbox_svc.store.records import Process


@functools.cache
def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Process | None:
    """Return the identity of a running process, None if there is none (a zombie counts as none)."""
    start = _start_time(pid)
    return None if start is None else Process(pid, start, boot_id())


def alive(process: Process | None) -> bool:
    """Tell whether that very process still runs."""
    return process is not None and process.boot_id == boot_id() and _start_time(process.pid) == process.start_time


def kill(process: Process | None, sig: int = signal.SIGKILL) -> bool:
    """Send a signal to that very process; False if it is gone. A pidfd keeps a reused pid from being hit."""
    if process is None:
        return False
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not alive(process):
            return False
        signal.pidfd_send_signal(fd, sig)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def gone_within(process: Process | None, timeout: float) -> bool:
    """Wait for that very process to end; False if it still runs after `timeout` seconds."""
    if process is None:
        return True
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        if not alive(process):
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(fd)


def running(program: str, word: str) -> list[Process]:
    """Return the processes that were started as a program of that file name with a word among their arguments."""
    name, wanted, found = os.path.basename(program).encode(), word.encode(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            first, *arguments = path.read_bytes().split(b"\0")
            if os.path.basename(first) == name and wanted in arguments:
                found.append(identify(int(path.parent.name)))
    return [each for each in found if each is not None]


def started_at(process: Process) -> int:
    """Return when a process started, in nanoseconds since the epoch, to the clock tick (10 ms)."""
    ticks = os.sysconf("SC_CLK_TCK")
    boot = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return boot + process.start_time * 1_000_000_000 // ticks


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/<pid>/stat (proc_pid_stat(5)); the command in field 2 may hold anything but ')'s end."""
    if pid <= 0:
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
