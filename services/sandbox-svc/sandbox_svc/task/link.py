"""The connection to one shim, or to the keeper beside a foreign one: task calls, and those of bulkhead.shim.v1.

Every call has a deadline except Wait, which is parked. A connection that breaks is made anew by the next call;
`on_disconnect` tells the owner, who asks for the truth again (Wait and State).
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from bulkhead import ttrpc
from bulkhead.errors import NotFound, Unavailable
from bulkhead.proto import images_pb2, shim_pb2
from bulkhead.proto.containerd import task_pb2, task_types_pb2, types_pb2
from bulkhead.proto.containerd.runc_options_pb2 import CheckpointOptions
from bulkhead.ttrpc_frames import NAMESPACE_KEY
from sandbox_svc.store.records import Exit, ShimBinding

#: Seconds: the runtime's create on a loaded node, and calls that only look or signal.
CREATE_TIMEOUT, CALL_TIMEOUT = 120.0, 20.0

#: Spoken by our shims and keepers; a keeper translates for a foreign shim that speaks v2.
TASK = "containerd.task.v3.Task"
LINUX_RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

M = TypeVar("M", bound=Message)


def exit_of(status: int, stamp: object) -> Exit:
    """Return an exit from the status and google.protobuf.Timestamp of a shim's answer."""
    return Exit(status, getattr(stamp, "seconds", 0) * 1_000_000_000 + getattr(stamp, "nanos", 0))


class Link:
    """One shim, reached over at most one connection at a time."""

    RUNNING, PAUSED = task_types_pb2.RUNNING, task_types_pb2.PAUSED

    def __init__(self, binding: ShimBinding, on_disconnect: Callable[[], None] | None = None) -> None:
        self.binding = binding
        self._on_disconnect = on_disconnect
        self._lock = threading.Lock()
        self._client: ttrpc.Client | None = None
        self._closed = False
        self._held: dict[str, int] = {}

    @property
    def ours(self) -> bool:
        """Whether the shim is Bulkhead's own, which watches for exits and memory itself."""
        return not self.binding.foreign

    def hold(self, ident: str, fd: int) -> None:
        """Keep a descriptor open until the create of that container has been answered, or the link is closed."""
        self._held[ident] = fd

    def connect(self) -> None:
        """Make the connection if there is none; Unavailable if the shim does not answer."""
        self._connection()

    def close(self) -> None:
        """End the connection for good, without a word to `on_disconnect`."""
        with self._lock:
            self._closed, client, self._client = True, self._client, None
        if client is not None:
            client.close()
        for ident in list(self._held):
            self._let_go(ident)

    def expect_end(self) -> None:
        """The shim is about to leave by our wish: its hang-up is no news to anybody."""
        self._on_disconnect = None

    def report_loss(self) -> None:
        """Say that a foreign shim hung up on its keeper; our own connection is whole and would not tell."""
        client = self._client
        if self.binding.foreign and client is not None and not client.closed:
            self._lost()

    def create(
        self,
        ident: str,
        bundle: str,
        mounts: Sequence[images_pb2.Mount],
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
        options: Message | None = None,
    ) -> int:
        """Have the runtime create a container and return the pid of its init process."""
        request = task_pb2.CreateTaskRequest(
            id=ident, bundle=bundle, terminal=terminal, stdin=stdin, stdout=stdout, stderr=stderr
        )
        for mount in mounts:
            request.rootfs.append(
                types_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
            )
        if options is not None:
            # containerd's Any carries the bare full name, without the "type.googleapis.com/" that Pack() puts before.
            request.options.CopyFrom(ProtoAny(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString()))
        try:
            return self._call("Create", request, task_pb2.CreateTaskResponse, CREATE_TIMEOUT).pid
        finally:
            self._let_go(ident)

    def start(self, ident: str) -> int:
        """Start a created container and return its pid."""
        return self._call("Start", task_pb2.StartRequest(id=ident), task_pb2.StartResponse, CREATE_TIMEOUT).pid

    def kill(self, ident: str, signal: int, *, all: bool = False) -> bool:
        """Send a signal to the init process, or to all; False if it has exited already."""
        try:
            self._call("Kill", task_pb2.KillRequest(id=ident, signal=signal, all=all), Empty)
        except NotFound:
            return False
        return True

    def delete(self, ident: str) -> Exit | None:
        """Remove what the runtime keeps of an exited container and return its exit; None if it is gone already."""
        try:
            answer = self._call("Delete", task_pb2.DeleteRequest(id=ident), task_pb2.DeleteResponse, CREATE_TIMEOUT)
        except NotFound:
            return None
        return exit_of(answer.exit_status, answer.exited_at)

    def state(self, ident: str) -> task_pb2.StateResponse | None:
        """Return what the shim says of a container's init process; None if it knows none by that id."""
        try:
            return self._call("State", task_pb2.StateRequest(id=ident), task_pb2.StateResponse)
        except NotFound:
            return None

    def exited(self, ident: str) -> Exit | None:
        """Return the exit of a container that State calls stopped, None while it runs; NotFound if unknown."""
        state = self._call("State", task_pb2.StateRequest(id=ident), task_pb2.StateResponse)
        if state.status != task_types_pb2.STOPPED:
            return None
        return exit_of(state.exit_status, state.exited_at)

    def wait(self, ident: str) -> "Future[task_pb2.WaitResponse]":
        """Park a Wait: the future ends with the process, or with Unavailable when the connection does."""
        return self._connection().submit(TASK, "Wait", task_pb2.WaitRequest(id=ident), task_pb2.WaitResponse)

    def update(self, ident: str, resources: bytes, annotations: dict[str, str]) -> None:
        """Change limits: resources is the OCI runtime-spec's linux.resources as JSON."""
        request = task_pb2.UpdateTaskRequest(
            id=ident, resources=ProtoAny(type_url=LINUX_RESOURCES, value=resources), annotations=annotations
        )
        self._call("Update", request, Empty, CREATE_TIMEOUT)

    def pause(self, ident: str) -> None:
        """Freeze a container's processes."""
        self._call("Pause", task_pb2.PauseRequest(id=ident), Empty, CREATE_TIMEOUT)

    def resume(self, ident: str, timeout: float = CREATE_TIMEOUT) -> None:
        """Thaw a container's processes; our own shim gives up a checkpoint that is being made of it."""
        self._call("Resume", task_pb2.ResumeRequest(id=ident), Empty, timeout)

    def checkpoint(self, ident: str, images: str, work: str, timeout: float) -> None:
        """Have CRIU write a container's processes to a directory, and its log to another; they live on."""
        chosen = CheckpointOptions(work_path=work)
        request = task_pb2.CheckpointTaskRequest(id=ident, path=images)
        request.options.CopyFrom(ProtoAny(type_url=chosen.DESCRIPTOR.full_name, value=chosen.SerializeToString()))
        self._call("Checkpoint", request, Empty, timeout)

    def stats(self, ident: str) -> ProtoAny:
        """Return the cgroup metrics of a container as the shim packs them (io.containerd.cgroups.v1 or v2.Metrics)."""
        return self._call("Stats", task_pb2.StatsRequest(id=ident), task_pb2.StatsResponse).stats

    def shutdown(self, ident: str) -> None:
        """Ask the shim to leave; it stays while it has containers. One that is gone already is fine."""
        try:
            self._call("Shutdown", task_pb2.ShutdownRequest(id=ident), Empty, 5.0)
        except (NotFound, Unavailable):
            return

    def ours_call(self, method: str, request: Message, response_type: type[M], timeout: float = CALL_TIMEOUT) -> M:
        """Call bulkhead.shim.v1.Shim, which the keeper serves beside a foreign shim."""
        return self._connection().call("bulkhead.shim.v1.Shim", method, request, response_type, timeout)

    def exec_sync(
        self, request: shim_pb2.ExecSyncRequest, timeout: float
    ) -> tuple[shim_pb2.ExecSyncResponse, list[int]]:
        """Run a process to its end; long output comes as one memory file, whose descriptor is the caller's to close."""
        fds: list[int] = []
        answer = self._connection().call(
            "bulkhead.shim.v1.Shim", "ExecSync", request, shim_pb2.ExecSyncResponse, timeout, fds=fds
        )
        return answer, fds

    def _call(self, method: str, request: Message, response_type: type[M], timeout: float = CALL_TIMEOUT) -> M:
        return self._connection().call(TASK, method, request, response_type, timeout)

    def _connection(self) -> ttrpc.Client:
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self.binding.address}: the shim has been given up")
            if self._client is None or self._client.closed:
                self._client = ttrpc.Client(
                    self.binding.address.removeprefix("unix://"),
                    metadata={NAMESPACE_KEY: self.binding.namespace},
                    on_disconnect=self._lost,
                )
            return self._client

    def _let_go(self, ident: str) -> None:
        if (fd := self._held.pop(ident, -1)) >= 0:
            os.close(fd)

    def _lost(self) -> None:
        if not self._closed and self._on_disconnect is not None:
            self._on_disconnect()
