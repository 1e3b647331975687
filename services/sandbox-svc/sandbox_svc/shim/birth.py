"""From a parent to a shim: sockets made before the fork, and a child that shares nothing with whoever made it."""

import os
import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

from bulkhead.errors import AlreadyExists, Internal
from sandbox_svc.shim.reaper import IGNORED

#: Seconds that a live shim may take to accept a connection.
_PROBE = 1.0


def listen(path: str) -> socket.socket:
    """Bind root's ttrpc socket at a path; AlreadyExists if a live process serves it, a dead one's is replaced."""
    if alive(path):
        raise AlreadyExists(f"{path} is served by a live shim")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if os.path.lexists(path):
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock


def alive(path: str) -> bool:
    """Whether somebody accepts connections at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_PROBE)
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def orphan(body: Callable[[], object], keep: Iterable[int]) -> int:
    """Run `body` in a new process, its own session and no child of ours, and return its pid.

    It starts with the descriptors in `keep` and nothing else, and ignores the signals that a shim ignores.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle == 0:
        _middle(body, keep, writer)
    os.close(writer)
    try:
        os.waitpid(middle, 0)
        raw = os.read(reader, 16)
    finally:
        os.close(reader)
    if not raw:
        raise Internal("the shim's process could not be made")
    return int(raw)


def start_time(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot (proc(5), field 22 of stat)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def quiet(keep: Iterable[int], name: str = "bulkhead-shim") -> None:
    """Let go of whoever started this process: descriptors, directory, file mode mask, signals.

    The descriptors in `keep` stay open, standard streams lead to /dev/null. SIGTERM is ignored too: a unit that is
    stopped does not take pods along.
    """
    low = 3
    for fd in [*sorted(keep), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(low, fd)
        low = fd + 1
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.close(null)
    os.chdir("/")
    os.umask(0o022)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)


def _middle(body: Callable[[], object], keep: Iterable[int], writer: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        child = os.fork()
        if child:
            os.write(writer, b"%d" % child)
        else:
            quiet(keep)
            body()
        status = 0
    finally:
        # Nothing of the parent's may run here: its destructors would close numbers that are in use anew.
        os._exit(status)
