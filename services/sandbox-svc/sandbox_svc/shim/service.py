"""bulkhead.shim.v1.Shim: what this shim offers beside containerd's task service."""

import os

from google.protobuf.message import Message

from bulkhead.errors import FailedPrecondition
from bulkhead.proto import shim_pb2 as pb
from sandbox_svc.shim.execsync import ExecSync
from sandbox_svc.shim.host import Host, Member
from sandbox_svc.shim.processes import Process
from sandbox_svc.shim.server import Answer, Method
from sandbox_svc.shim.task import method
from sandbox_svc.shim.tickets import Tickets

SERVICE = "bulkhead.shim.v1.Shim"
#: Counts up with every change that a client must know of.
VERSION = 1


class ShimService:
    """One method for each RPC."""

    def __init__(self, host: Host, tickets: Tickets) -> None:
        self._host, self._tickets = host, tickets

    def methods(self) -> dict[str, Method]:
        """Return the methods by `service/name`."""
        return {
            f"{SERVICE}/Info": method(pb.InfoRequest, self.info),
            f"{SERVICE}/ReopenLog": method(pb.ReopenLogRequest, self.reopen_log),
            f"{SERVICE}/ExecSync": self.exec_sync,
            f"{SERVICE}/AddTicket": method(pb.AddTicketRequest, self.add_ticket),
            f"{SERVICE}/Exits": method(pb.ExitsRequest, self.exits),
        }

    async def info(self, _request: pb.InfoRequest, _: float) -> Message:
        """Answer who this is and which containers it has."""
        return pb.InfoResponse(version=VERSION, pid=os.getpid(), containers=sorted(self._host.containers))

    async def reopen_log(self, request: pb.ReopenLogRequest, _: float) -> Message:
        """Open a running container's log file anew, after it was renamed away."""
        process = self._host.find(request.container_id).init
        if process.end is not None or process.io is None:
            raise FailedPrecondition(f"cannot reopen the log of {process}: it is not running")
        try:
            process.io.reopen_logs()
        except OSError as error:
            raise FailedPrecondition(f"log of {process}: {error}") from error
        return pb.ReopenLogResponse()

    async def exec_sync(self, payload: bytes, _: float) -> Answer:
        """Run a process and answer its output."""
        return await ExecSync(self._host, pb.ExecSyncRequest.FromString(payload)).run()

    async def add_ticket(self, request: pb.AddTicketRequest, _: float) -> Message:
        """Register a ticket; for a container that is not here it is refused at once."""
        what = request.WhichOneof("what")
        if what == "exec":
            self._host.find(request.exec.container_id)
        elif what == "attach":
            self._host.find(request.attach.container_id)
        self._tickets.add(request)
        return pb.AddTicketResponse()

    async def exits(self, _request: pb.ExitsRequest, _: float) -> Message:
        """Answer every exit that was not collected by Delete."""
        answer = pb.ExitsResponse()
        for container in self._host.containers.values():
            for process in (container.init, *container.execs.values()):
                if process.end is not None:
                    answer.exits.append(_exit(container, process))
        return answer


def _exit(container: Member, process: Process) -> pb.Exit:
    assert process.end is not None
    return pb.Exit(
        container_id=container.id,
        exec_id=process.exec_id,
        pid=process.pid,
        status=process.end.status,
        exited_at=process.end.at,
        oom=container.oom and not process.exec_id,
    )
