"""containerd's task service, versions 2 and 3: requests turned into what Lifecycle does."""

import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from bulkhead.proto.containerd import task_pb2 as pb
from bulkhead.proto.containerd.runc_options_pb2 import ProcessDetails
from bulkhead.proto.containerd.task_types_pb2 import ProcessInfo
from sandbox_svc.shim import checkpoint, metrics
from sandbox_svc.shim.endings import stamp
from sandbox_svc.shim.events import pack
from sandbox_svc.shim.lifecycle import Lifecycle
from sandbox_svc.shim.processes import Process
from sandbox_svc.shim.server import Answer, Method
from sandbox_svc.shim.streamset import IoSpec

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")

R = TypeVar("R", bound=Message)


class TaskService:
    """One method for each RPC; the second argument is the caller's time limit in seconds, 0 for none."""

    def __init__(self, lifecycle: Lifecycle, shutdown: Callable[[], None]) -> None:
        self._lifecycle = lifecycle
        self._shutdown = shutdown

    def methods(self) -> dict[str, Method]:
        """Return the methods by `service/name`, under both names of the service."""
        table: dict[str, Method] = {
            "State": method(pb.StateRequest, self.state),
            "Create": method(pb.CreateTaskRequest, self.create),
            "Start": method(pb.StartRequest, self.start),
            "Delete": method(pb.DeleteRequest, self.delete),
            "Pids": method(pb.PidsRequest, self.pids),
            "Pause": method(pb.PauseRequest, self.pause),
            "Resume": method(pb.ResumeRequest, self.resume),
            "Checkpoint": method(pb.CheckpointTaskRequest, self.checkpoint),
            "Kill": method(pb.KillRequest, self.kill),
            "Exec": method(pb.ExecProcessRequest, self.exec),
            "ResizePty": method(pb.ResizePtyRequest, self.resize_pty),
            "CloseIO": method(pb.CloseIORequest, self.close_io),
            "Update": method(pb.UpdateTaskRequest, self.update),
            "Wait": method(pb.WaitRequest, self.wait),
            "Stats": method(pb.StatsRequest, self.stats),
            "Connect": method(pb.ConnectRequest, self.connect),
            "Shutdown": method(pb.ShutdownRequest, self.shut_down),
        }
        return {f"{service}/{name}": call for service in SERVICES for name, call in table.items()}

    def _process(self, request: Any) -> Process:
        return self._lifecycle.find(request.id).process(request.exec_id)

    async def state(self, request: pb.StateRequest, _: float) -> Message:
        """Answer what is known of a process, the truth about its exit included."""
        container = self._lifecycle.find(request.id)
        process = container.process(request.exec_id)
        answer = pb.StateResponse(
            id=container.id,
            bundle=container.bundle,
            pid=process.pid,
            status=process.status,
            stdin=process.io_spec.stdin,
            stdout=process.io_spec.stdout,
            stderr=process.io_spec.stderr,
            terminal=process.io_spec.terminal,
            exec_id=process.exec_id,
        )
        if process.end is not None:
            answer.exit_status = process.end.status
            answer.exited_at.CopyFrom(stamp(process.end.at))
        return answer

    async def create(self, request: pb.CreateTaskRequest, limit: float) -> Message:
        """Make a container."""
        return pb.CreateTaskResponse(pid=await self._lifecycle.create(request, limit))

    async def start(self, request: pb.StartRequest, limit: float) -> Message:
        """Start a container's init process or an exec."""
        container = self._lifecycle.find(request.id)
        process = container.process(request.exec_id)
        return pb.StartResponse(pid=await self._lifecycle.start(container, process, limit))

    async def delete(self, request: pb.DeleteRequest, limit: float) -> Message:
        """Remove a process that has ended."""
        container = self._lifecycle.find(request.id)
        pid, end = await self._lifecycle.delete(container, container.process(request.exec_id), limit)
        return pb.DeleteResponse(pid=pid, exit_status=end.status, exited_at=stamp(end.at))

    async def pids(self, request: pb.PidsRequest, _: float) -> Message:
        """List the container's processes, naming those that this shim started."""
        container = self._lifecycle.find(request.id)
        execs = {process.pid: process.exec_id for process in container.execs.values()}
        answer = pb.PidsResponse()
        for pid in container.cgroup.pids():
            info = ProcessInfo(pid=pid)
            if pid in execs:
                info.info.CopyFrom(pack(ProcessDetails(exec_id=execs[pid])))
            answer.processes.append(info)
        return answer

    async def pause(self, request: pb.PauseRequest, _: float) -> Message:
        """Freeze a container."""
        await self._lifecycle.freeze(self._lifecycle.find(request.id), "pause")
        return Empty()

    async def resume(self, request: pb.ResumeRequest, _: float) -> Message:
        """Thaw a container; a checkpoint that is being made of it is given up for that."""
        container = self._lifecycle.find(request.id)
        container.end_dump()
        await self._lifecycle.freeze(container, "resume")
        return Empty()

    async def checkpoint(self, request: pb.CheckpointTaskRequest, limit: float) -> Message:
        """Write a container's processes to files."""
        await checkpoint.write(self._lifecycle.find(request.id), request, limit)
        return Empty()

    async def kill(self, request: pb.KillRequest, _: float) -> Message:
        """Signal a process, or all of the container's; SIGKILL of its init ends a checkpoint that is being made."""
        container = self._lifecycle.find(request.id)
        process = container.process(request.exec_id)
        if request.signal == signal.SIGKILL and process is container.init:
            container.end_dump()
        self._lifecycle.kill(container, process, request.signal, everybody=request.all)
        return Empty()

    async def exec(self, request: pb.ExecProcessRequest, _: float) -> Message:
        """Add a process to a container, to be started by Start."""
        container = self._lifecycle.find(request.id)
        io_spec = IoSpec(request.stdin, request.stdout, request.stderr, request.terminal)
        self._lifecycle.add_exec(container, request.exec_id, io_spec, request.spec.value)
        return Empty()

    async def resize_pty(self, request: pb.ResizePtyRequest, _: float) -> Message:
        """Set the size of a process's terminal."""
        process = self._process(request)
        if process.io is None:
            process.size = (request.width, request.height)
        else:
            process.io.resize(request.width, request.height)
        return Empty()

    async def close_io(self, request: pb.CloseIORequest, _: float) -> Message:
        """End a process's standard input."""
        process = self._process(request)
        if request.stdin and process.io is not None:
            process.io.close_stdin()
        return Empty()

    async def update(self, request: pb.UpdateTaskRequest, _: float) -> Message:
        """Set the container's resource limits."""
        await self._lifecycle.update(self._lifecycle.find(request.id), request.resources.value)
        return Empty()

    async def wait(self, request: pb.WaitRequest, _: float) -> Message:
        """Answer when the process has ended, however long that takes."""
        end = await self._process(request).exited
        return pb.WaitResponse(exit_status=end.status, exited_at=stamp(end.at))

    async def stats(self, request: pb.StatsRequest, _: float) -> Message:
        """Answer the numbers of the container's cgroup."""
        container = self._lifecycle.find(request.id)
        return pb.StatsResponse(stats=pack(metrics.collect(container.cgroup)))

    async def connect(self, request: pb.ConnectRequest, _: float) -> Message:
        """Answer this process's pid and the init's, 0 if there is no such container."""
        container = self._lifecycle.containers.get(request.id)
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=container.init.pid if container else 0)

    async def shut_down(self, _request: pb.ShutdownRequest, _: float) -> Message:
        """Leave if no container is left; a grouped shim is told once for each of them."""
        if not self._lifecycle.containers:
            self._shutdown()
        return Empty()


def method(kind: type[R], call: Callable[[R, float], Coroutine[Any, None, Message]]) -> Method:
    """Wrap a method that takes and returns messages as one that takes and returns bytes."""

    async def wrapped(payload: bytes, limit: float) -> Answer:
        return Answer((await call(kind.FromString(payload), limit)).SerializeToString())

    return wrapped
