"""What follows from the end of a process: its last output, what it leaves running, who is told, and what is kept."""

import json
import logging
import signal
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from bulkhead.proto.containerd.events_pb2 import TaskExit, TaskOOM
from sandbox_svc.shim import notes
from sandbox_svc.shim.processes import Container, Process
from sandbox_svc.shim.reaper import Exit
from sandbox_svc.shim.tally import Tally

logger = logging.getLogger(__name__)

#: Where the exit of a container's init process waits until Delete.
EXIT_FILE = "exit.json"

Publish = Callable[..., None]


class Endings:
    """Settles processes that have ended."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self.tally = Tally()

    def ended(self, container: Container, process: Process, end: Exit) -> None:
        """Note an exit, and settle it when the runtime's present call has been answered."""
        process.ended(end)
        if process.busy is not None:
            process.busy.then(lambda _: self._settle(container, process, end))
        else:
            self._settle(container, process, end)

    def out_of_memory(self, container: Container) -> None:
        """Note that the kernel killed in this container for want of memory, if it did."""
        if self.tally.kills(container.id):
            container.oom = True
            self._publish("/tasks/oom", TaskOOM, container_id=container.id)

    def _settle(self, container: Container, process: Process, end: Exit) -> None:
        if not process.exec_id:
            if not container.private_pids:
                container.cgroup.signal(signal.SIGKILL)
            if not container.oom:
                self.out_of_memory(container)
            _keep(container, process, end)
        if process.io is not None:
            process.io.drain()
        self._publish(
            "/tasks/exit",
            TaskExit,
            container_id=container.id,
            id=process.exec_id or container.id,
            pid=process.pid,
            exit_status=end.status,
            exited_at=stamp(end.at),
        )
        process.exited.set(end)


def stamp(ns: int) -> Timestamp:
    """Return a time in ns since 1970 as a protobuf timestamp."""
    return Timestamp(seconds=ns // 1_000_000_000, nanos=ns % 1_000_000_000)


def _keep(container: Container, process: Process, end: Exit) -> None:
    note = {"pid": process.pid, "status": end.status, "exited_at": end.at, "oom": container.oom}
    try:
        notes.replace(f"{container.bundle}/{EXIT_FILE}", json.dumps(note).encode())
    except OSError as error:
        logger.error("%s: its exit cannot be kept on disk: %s", process, error)
