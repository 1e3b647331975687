"""Starting processes and reaping every child: the shim's own, the runtimes', and orphans of its containers.

`subprocess` would race with the reaper (a subreaper must wait for any child, and Popen then reports success for a
child that failed), so processes are made by posix_spawn and their exits come from one place.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sandbox_svc.shim import signals
from sandbox_svc.shim.loop import READ, Future, Loop

#: Signals that the shim ignores and a child must not inherit as ignored.
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ)

#: What a service manager tells the one process that it started; runc would wait for an answer on NOTIFY_SOCKET.
_MANAGERS = (b"NOTIFY_SOCKET", b"LISTEN_FDS", b"LISTEN_PID", b"LISTEN_FDNAMES", b"WATCHDOG_USEC", b"WATCHDOG_PID")
#: Where runtimes look for their helpers, if nobody says.
_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(own: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return what children are given of this environment."""
    kept = {name: value for name, value in own.items() if name not in _MANAGERS}
    return {b"PATH": _PATH} | kept


#: The environment of every child. os.environ decodes and encodes each variable whenever it is read: 0.05 MB a pod.
_ENVIRONMENT = environment(os.environb)


class Exit(NamedTuple):
    """How a process ended: its status as a shell shows it (128 + n for signal n), and when, in ns since 1970."""

    status: int
    at: int


class Reaper:
    """Every child of this process, by pid.

    An exit that comes before anybody asked for the pid is kept while somebody is `expecting` one: a runtime reports
    the pid of a container's process only after it made it, and the process may be gone by then.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._claims: dict[int, Future[Exit]] = {}
        self._unclaimed: dict[int, Exit] = {}
        self._expecting = 0
        #: Reads the signals of whichever process reads it, so it may be made before a fork.
        self.fd = signals.signalfd([signal.SIGCHLD])

    def begin(self) -> None:
        """Reap from now on."""
        self._loop.watch(self.fd, READ, self._on_signal)

    def spawn(self, path: str, arguments: Sequence[str], stdio: tuple[int, int, int]) -> tuple[int, Future[Exit]]:
        """Start a program in a process group of its own; return its pid and its exit to come.

        stdio are the descriptors that become its 0, 1 and 2; all others are closed by exec.
        """
        pid = os.posix_spawn(
            path,
            list(arguments),
            _ENVIRONMENT,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(stdio)],
            setpgroup=0,
            setsigmask=(),
            setsigdef=IGNORED,
        )
        return pid, self.claim(pid)

    def claim(self, pid: int) -> Future[Exit]:
        """Return the exit of a child, which may lie in the past."""
        future: Future[Exit] = Future()
        if (past := self._unclaimed.pop(pid, None)) is not None:
            future.set(past)
        else:
            self._claims[pid] = future
        return future

    def alive(self, pid: int) -> bool:
        """Whether a claimed child has not been reaped: only then is its number surely its own."""
        return pid in self._claims

    def expect(self) -> None:
        """Keep unclaimed exits until as many calls of `settle`."""
        self._expecting += 1

    def settle(self) -> None:
        """End one `expect`."""
        self._expecting -= 1
        if not self._expecting:
            self._unclaimed.clear()

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if info is None:
                return
            status = info.si_status if info.si_code == os.CLD_EXITED else 128 + info.si_status
            self._ended(info.si_pid, Exit(status, time.time_ns()))

    def close(self) -> None:
        """Stop listening for children."""
        self._loop.unwatch(self.fd)
        os.close(self.fd)

    def _ended(self, pid: int, end: Exit) -> None:
        claim = self._claims.pop(pid, None)
        if claim is not None:
            claim.set(end)
        elif self._expecting:
            self._unclaimed[pid] = end

    def _on_signal(self, _: int) -> None:
        os.read(self.fd, 128 * 16)
        self.reap()
