"""Containers and their processes: what is known of each, and what may be done to it when.

             start            pause
CREATED ---------> RUNNING <========> PAUSED
   |                  |     resume      |
   |   exit           | exit            | exit
   +------------> STOPPED <-------------+
                      | delete
                      v
                   (gone)
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from bulkhead.errors import FailedPrecondition, NotFound
from bulkhead.proto.containerd.task_types_pb2 import CREATED, PAUSED, RUNNING, STOPPED
from sandbox_svc.shim.cgroup import Cgroup
from sandbox_svc.shim.loop import Future, Turn
from sandbox_svc.shim.reaper import Exit
from sandbox_svc.shim.streamset import IoSpec, Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from bulkhead.proto.containerd.task_types_pb2 import Status
    from sandbox_svc.shim.runtime import Runtime

#: An action, the states in which it is allowed, and what to call the state that it needs.
ALLOWED: dict[str, tuple[tuple[int, ...], str]] = {
    "start": ((CREATED,), "created"),
    "pause": ((RUNNING,), "running"),
    "resume": ((PAUSED,), "paused"),
    "exec": ((RUNNING,), "running"),
    "update": ((CREATED, RUNNING, PAUSED), "alive"),
    "checkpoint": ((RUNNING, PAUSED), "running"),
    "delete": ((STOPPED,), "stopped"),
}
_NAMES = {CREATED: "created", RUNNING: "running", PAUSED: "paused", STOPPED: "stopped"}


class Process:
    """One process: a container's init (exec_id is empty) or an exec."""

    __slots__ = ("busy", "container_id", "end", "exec_id", "exited", "io", "io_spec", "pid", "size", "spec", "status")

    def __init__(self, container_id: str, exec_id: str, io_spec: IoSpec, spec: bytes = b"") -> None:
        self.container_id, self.exec_id = container_id, exec_id
        self.io_spec, self.spec = io_spec, spec
        self.pid = 0
        self.status: Status = CREATED
        self.io: Streams | None = None
        #: Set when it is over; `exited` tells those who wait, once everything that belongs to the exit is done.
        self.end: Exit | None = None
        self.exited: Future[Exit] = Future()
        #: Until this call of the runtime has been answered, an exit is not announced.
        self.busy: Future[None] | None = None
        #: A terminal's size that was set before there was a terminal.
        self.size: tuple[int, int] | None = None

    def require(self, action: str) -> None:
        """FailedPrecondition unless the action is allowed now."""
        states, needed = ALLOWED[action]
        if self.status not in states:
            raise FailedPrecondition(f"cannot {action} {self}: it is {_NAMES[self.status]}, not {needed}")

    def started(self) -> None:
        """It runs, unless it has ended already."""
        if self.status == CREATED:
            self.status = RUNNING

    def ended(self, end: Exit) -> None:
        """It has ended; the first exit counts."""
        if self.end is None:
            self.end, self.status = end, STOPPED

    def sized_spec(self) -> bytes:
        """Return the spec with the terminal's size, where one is known: set any later, the process could miss it."""
        if self.size is None or not self.io_spec.terminal:
            return self.spec
        spec = json.loads(self.spec)
        spec["consoleSize"] = {"width": self.size[0], "height": self.size[1]}
        return json.dumps(spec).encode()

    def __str__(self) -> str:
        return f"exec {self.exec_id!r}" if self.exec_id else f"container {self.container_id!r}"


class Container:
    """A container and all its processes."""

    __slots__ = (
        "bundle",
        "cgroup",
        "end_dump",
        "execs",
        "id",
        "init",
        "mounted",
        "oom",
        "oom_watch",
        "private_pids",
        "runtime",
        "turn",
    )

    def __init__(self, ident: str, bundle: str, runtime: Runtime, io_spec: IoSpec) -> None:
        self.id, self.bundle, self.runtime = ident, bundle, runtime
        self.init = Process(ident, "", io_spec)
        self.execs: dict[str, Process] = {}
        self.cgroup = Cgroup({})
        self.mounted = False
        self.oom = False
        self.oom_watch: int = -1
        #: Whether the kernel kills everything with the init process.
        self.private_pids = True
        #: Runtime calls that change the container go one at a time.
        self.turn = Turn()
        #: Kills the runtime while it checkpoints the container, and does nothing otherwise.
        self.end_dump: Callable[[], None] = nothing

    @property
    def rootfs(self) -> str:
        """Where the container's root is mounted."""
        return os.path.join(self.bundle, "rootfs")

    def process(self, exec_id: str) -> Process:
        """Return a process by its exec id; NotFound if there is none."""
        if not exec_id:
            return self.init
        process = self.execs.get(exec_id)
        if process is None:
            raise NotFound(f"container {self.id!r} has no exec {exec_id!r}")
        return process


def nothing() -> None:
    """Do nothing."""


def has_private_pids(pid: int, *, proc: str = "/proc") -> bool:
    """Whether a process is the first of its pid namespace, so that nothing outlives it there."""
    try:
        with open(f"{proc}/{pid}/status") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    numbers = line.split()[1:]
                    return len(numbers) > 1 and numbers[-1] == "1"
    except OSError:
        pass  # gone already; killing an empty cgroup does no harm
    return False
