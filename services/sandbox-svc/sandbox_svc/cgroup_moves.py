"""The kernel kept ready to move processes between cgroups while containers are being started.

Whoever writes to a cgroup.procs, as runtimes do for each container, waits for an RCU grace period, 7 to 20 ms, unless
the last such write was some 15 ms ago or less (cgroup_threadgroup_rwsem; cgroup v2's mount option favordynmods keeps
that state for good, at the price of dearer forks). So while an operation that will start something is under way, a
thread moves our own process into the group in which it is, which moves nothing: the wait is over before the runtime
comes to it.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox_svc import cgroup

logger = logging.getLogger(__name__)

#: Seconds between two writes, and for how long after the last operation they go on: the next one follows soon.
PERIOD, LINGER = 0.01, 0.05
#: Seconds after an operation's beginning that they go on at most: one that waits for its network needs none, and they
#: take 2 % of a processor.
LONGEST = 5.0
#: The version 1 hierarchies that may serve: a move in these touches no limit.
_HIERARCHIES = ("pids", "freezer", "name=systemd")


class Readiness:
    """Writes to our own group's cgroup.procs as long as somebody holds it."""

    def __init__(self, root: Path = cgroup.ROOT, own: Path = Path("/proc/self/cgroup")) -> None:
        self._root, self._own = root, own
        self._lock = threading.Lock()
        self._holders = 0
        self._until = 0.0
        self._running = self._refused = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the kernel ready during the block, at most for LONGEST, and a little longer; never waits or fails."""
        with self._lock:
            self._holders += 1
            self._until = time.monotonic() + LONGEST
            begin = not self._running and not self._refused
            self._running = self._running or begin
        if begin:
            self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._until = time.monotonic() + LINGER

    def _begin(self) -> None:
        try:
            threading.Thread(target=self._keep, name="cgroup-moves", daemon=True).start()
        except RuntimeError as error:  # as many threads as there may be
            logger.info("moves between cgroups are not prepared for this time: %s", error)
            with self._lock:
                self._running = False

    def _keep(self) -> None:
        while True:
            try:
                self._write()
            except OSError as error:
                logger.info("moves between cgroups are not prepared for: %s", error)
                self._refused = True
            with self._lock:
                if self._refused or time.monotonic() > self._until:
                    self._running = False
                    return
            time.sleep(PERIOD)

    def _write(self) -> None:
        """Move this process to where it is; looked up each time, so that a move by others is never undone."""
        fd = os.open(self._file(), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)

    def _file(self) -> Path:
        groups = {}
        for line in self._own.read_text(errors="surrogateescape").rstrip("\n").split("\n"):
            _, controllers, path = line.split(":", 2)
            groups[controllers] = path.lstrip("/")
        if cgroup.mode(self._root) == "v2":
            return self._root / groups.get("", "") / "cgroup.procs"
        for name in _HIERARCHIES:
            directory = self._root / name.removeprefix("name=") / groups.get(name, "")
            if name in groups and directory.is_dir():
                return directory / "cgroup.procs"
        raise FileNotFoundError(f"none of {', '.join(_HIERARCHIES)} is mounted below {self._root}")


#: The node's; operations that will start a process hold it.
readiness = Readiness()
