"""What happens to containers: making them, starting, signalling, ending and removing them and their execs."""

import itertools
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bulkhead.errors import AlreadyExists, BulkheadError, FailedPrecondition, Internal, InvalidArgument, NotFound
from bulkhead.files import write_atomic
from bulkhead.proto.containerd import events_pb2 as events
from bulkhead.proto.containerd.task_pb2 import CreateTaskRequest
from bulkhead.proto.containerd.task_types_pb2 import CREATED, PAUSED, RUNNING
from sandbox_svc.shim import mounts, oom, options
from sandbox_svc.shim.cgroup import Cgroup
from sandbox_svc.shim.console import ConsoleSocket
from sandbox_svc.shim.loop import Future, Loop
from sandbox_svc.shim.null import open_null
from sandbox_svc.shim.processes import Container, Process, has_private_pids
from sandbox_svc.shim.reaper import Exit, Reaper
from sandbox_svc.shim.runtime import Runtime
from sandbox_svc.shim.stdio import ProcessIO
from sandbox_svc.shim.streamset import IoSpec, Streams

logger = logging.getLogger(__name__)

#: Seconds that a runtime's terminal may take to arrive after the runtime has returned.
TERMINAL_WAIT = 10.0
#: Where the exit of a container's init process waits until Delete.
EXIT_FILE = "exit.json"
#: What `delete` must know when it runs without the shim.
RUNTIME_FILE = "runtime.json"

Publish = Callable[[str, Message], None]
#: Runs the runtime with a pid file, stdio and a console socket.
Launch = Callable[[str, Sequence[int], str], Awaitable[None]]

_numbers = itertools.count()


class Lifecycle:
    """The containers of one pod."""

    def __init__(self, loop: Loop, reaper: Reaper, namespace: str, console_base: str, publish: Publish) -> None:
        self.loop, self.reaper, self.namespace, self.publish = loop, reaper, namespace, publish
        self.containers: dict[str, Container] = {}
        #: What makes containers; the rehearsal has another.
        self.runtime: type[Runtime] = Runtime
        self.null = open_null()
        #: Called after the last container is gone.
        self.on_empty: Callable[[], object] = lambda: None
        # A socket's path holds 107 bytes, which a bundle's is often beyond.
        self._console_base = console_base

    def close(self) -> None:
        """Close what is open without a container."""
        os.close(self.null)

    def find(self, ident: str) -> Container:
        """Return a container; NotFound if there is none of that id."""
        container = self.containers.get(ident)
        if container is None:
            raise NotFound(f"container {ident!r} is not in this shim")
        return container

    async def create(self, request: CreateTaskRequest, deadline: float) -> int:
        """Mount the rootfs, make the container, and return the pid of its waiting process."""
        if request.id in self.containers:
            raise AlreadyExists(f"container {request.id!r} exists in this shim")
        if not os.path.isabs(request.bundle):
            raise InvalidArgument(f"bundle {request.bundle!r} is not an absolute path")
        if request.checkpoint:
            raise InvalidArgument("restoring a container from a checkpoint is not supported by this shim")
        runtime = self.runtime(self.loop, self.reaper, self.null, options.read(request.options), self.namespace)
        io_spec = IoSpec(request.stdin, request.stdout, request.stderr, request.terminal)
        container = Container(request.id, request.bundle, runtime, io_spec)
        self.containers[request.id] = container
        container.init.busy = busy = Future[None]()
        try:
            async with container.turn:
                await self._make(container, request, deadline)
        except BaseException:
            self._discard(container)
            raise
        task_io = events.TaskIO(
            stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
        )
        self.publish(
            "/tasks/create",
            events.TaskCreate(
                container_id=request.id,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=task_io,
                pid=container.init.pid,
            ),
        )
        self.loop.soon(lambda: busy.set(None))
        return container.init.pid

    def streams(self, ident: str, io_spec: IoSpec) -> ProcessIO:
        """Open the streams of a process, owned as the options of the container's runtime say."""
        chosen = self.find(ident).runtime.options
        return ProcessIO(self.loop, self.null, io_spec, chosen.io_uid, chosen.io_gid)

    async def start(self, container: Container, process: Process, deadline: float) -> int:
        """Let a created container run, or launch an exec that was added; return its pid."""
        if process.exec_id:
            return await self._start_exec(container, process, deadline)
        async with container.turn:
            process.require("start")
            process.busy = busy = Future[None]()
            try:
                await container.runtime.start(container.id, container.bundle, deadline)
                process.started()
                self.publish("/tasks/start", events.TaskStart(container_id=container.id, pid=process.pid))
            finally:
                self.loop.soon(lambda: busy.set(None))
        return process.pid

    def add_exec(self, container: Container, exec_id: str, io_spec: IoSpec, spec: bytes) -> Process:
        """Remember a further process, to be launched by `start`."""
        if not exec_id or "/" in exec_id or exec_id.startswith("."):
            raise InvalidArgument(f"exec id {exec_id!r} cannot be a file name")
        if exec_id in container.execs:
            raise AlreadyExists(f"exec {exec_id!r} exists in container {container.id!r}")
        container.init.require("exec")
        process = container.execs[exec_id] = Process(container.id, exec_id, io_spec, spec)
        self.publish("/tasks/exec-added", events.TaskExecAdded(container_id=container.id, exec_id=exec_id))
        return process

    async def run_exec(self, ident: str, process: Process, io: Streams, deadline: float) -> None:
        """Launch an exec with streams from `streams`; they are closed if it fails."""
        assert isinstance(io, ProcessIO)
        container = self.find(ident)
        container.init.require("exec")
        spec_file = os.path.join(container.bundle, f"exec-{next(_numbers)}.json")

        async def launch(pid_file: str, stdio: Sequence[int], console: str) -> None:
            Path(spec_file).write_bytes(process.sized_spec())
            os.chmod(spec_file, 0o600)
            await container.runtime.exec(container.id, container.bundle, spec_file, pid_file, stdio, console, deadline)

        try:
            await self._launch(container, process, io, launch)
        finally:
            with suppress(OSError):
                os.unlink(spec_file)
        process.started()

    def kill(self, container: Container, process: Process, number: int, *, everybody: bool) -> None:
        """Signal a process, or every process of the container; NotFound if it has ended."""
        if everybody and not process.exec_id and container.cgroup.pids():
            container.cgroup.signal(number)
        elif process.end is not None or (process.pid and not self.reaper.alive(process.pid)):
            raise NotFound("process already finished")
        elif not process.pid:
            raise FailedPrecondition(f"{process} has not been started")
        else:
            os.kill(process.pid, number)
        if number == signal.SIGKILL and container.init.status == PAUSED:
            # A frozen process dies of it only when it is thawed.
            self.loop.detach(container.runtime.call(["resume", container.id], container.bundle, 0))

    def kill_group(self, process: Process) -> bool:
        """Kill a process and, where it leads a group as runtimes make it, the whole group; whether it was alive."""
        if process.end is not None or not self.reaper.alive(process.pid):
            return False
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
        return True

    async def freeze(self, container: Container, action: str) -> None:
        """Pause or resume a container."""
        async with container.turn:
            container.init.require(action)
            await container.runtime.call([action, container.id], container.bundle, 0)
            if container.init.end is None:
                container.init.status = PAUSED if action == "pause" else RUNNING
        if action == "pause":
            self.publish("/tasks/paused", events.TaskPaused(container_id=container.id))
        else:
            self.publish("/tasks/resumed", events.TaskResumed(container_id=container.id))

    async def update(self, container: Container, resources: bytes) -> None:
        """Set resource limits, given as an OCI runtime-spec LinuxResources in JSON."""
        async with container.turn:
            container.init.require("update")
            path = os.path.join(container.bundle, f"update-{next(_numbers)}.json")
            try:
                Path(path).write_bytes(resources)
                await container.runtime.call(["update", "--resources", path, container.id], container.bundle, 0)
            finally:
                with suppress(OSError):
                    os.unlink(path)

    async def delete(self, container: Container, process: Process, deadline: float) -> tuple[int, Exit]:
        """Forget a process that has ended; with the init process the whole container. Return its pid and exit."""
        if process.exec_id:
            if process.end is None and process.pid:
                process.require("delete")
            del container.execs[process.exec_id]
            if process.io is not None:
                process.io.close()
            return process.pid, process.end or Exit(0, 0)
        async with container.turn:
            if process.status != CREATED:
                process.require("delete")
            if self.containers.get(container.id) is not container:
                raise NotFound(f"container {container.id!r} is not in this shim")
            await container.runtime.delete(container.id, container.bundle, deadline)
            if process.end is None:
                await self.loop.within(process.exited, 10.0, f"the end of {process}")
        end = process.end or Exit(137, 0)
        self._discard(container)
        self.publish(
            "/tasks/delete",
            events.TaskDelete(
                container_id=container.id, pid=process.pid, exit_status=end.status, exited_at=stamp(end.at)
            ),
        )
        return process.pid, end

    async def _make(self, container: Container, request: CreateTaskRequest, deadline: float) -> None:
        runtime = container.runtime
        note = {"binary": runtime.binary, "root": runtime.root, "systemd": runtime.options.systemd_cgroup}
        Path(container.bundle, RUNTIME_FILE).write_text(json.dumps(note))
        if request.rootfs:
            os.makedirs(container.rootfs, exist_ok=True)
            container.mounted = True
            mounts.execute(mounts.plan(request.rootfs, container.rootfs), container.rootfs)
        io = self.streams(container.id, container.init.io_spec)

        async def launch(pid_file: str, stdio: Sequence[int], console: str) -> None:
            await container.runtime.create(container.id, container.bundle, pid_file, stdio, console, deadline)

        try:
            await self._launch(container, container.init, io, launch)
        except BaseException:
            # The runtime cleans up after itself, except where it was killed or its terminal never came.
            with suppress(BulkheadError):
                await container.runtime.delete(container.id, container.bundle, deadline)
            raise
        container.cgroup = Cgroup.of(container.init.pid)
        container.private_pids = has_private_pids(container.init.pid)
        container.oom_watch = oom.watch(self.loop, container.cgroup, lambda: self._out_of_memory(container))

    async def _start_exec(self, container: Container, process: Process, deadline: float) -> int:
        process.require("start")
        if process.busy is not None:
            raise FailedPrecondition(f"{process} is being started")
        process.busy = busy = Future[None]()
        try:
            io = self.streams(container.id, process.io_spec)
            await self.run_exec(container.id, process, io, deadline)
            self.publish(
                "/tasks/exec-started",
                events.TaskExecStarted(container_id=container.id, exec_id=process.exec_id, pid=process.pid),
            )
        except BaseException:
            process.busy = None
            raise
        finally:
            self.loop.soon(lambda: busy.set(None))
        return process.pid

    async def _launch(self, container: Container, process: Process, io: ProcessIO, launch: Launch) -> None:
        pid_file = os.path.join(container.bundle, f"process-{next(_numbers)}.pid")
        terminal = process.io_spec.terminal
        self.reaper.expect()
        console = None
        try:
            console = ConsoleSocket(self.loop, f"{self._console_base}{next(_numbers)}") if terminal else None
            await launch(pid_file, io.child(), console.path if console else "")
            process.pid = int(Path(pid_file).read_text())
            process.io = io
            self.reaper.claim(process.pid).then(lambda end: self._ended(container, process, end.result()))
            if console is not None:
                await self._adopt(console, process, io)
            io.feed()
        except BaseException as error:
            io.close()
            if isinstance(error, (OSError, ValueError)):
                raise Internal(f"{process} cannot be launched: {error}") from error
            raise
        finally:
            self.reaper.settle()
            io.started()
            if console is not None:
                console.close()
            with suppress(OSError):
                os.unlink(pid_file)

    async def _adopt(self, console: ConsoleSocket, process: Process, io: ProcessIO) -> None:
        try:
            io.adopt(await self.loop.within(console.master, TERMINAL_WAIT, "the arrival of the terminal"))
        except BulkheadError:
            if process.end is None and self.reaper.alive(process.pid):
                os.kill(process.pid, signal.SIGKILL)
            raise
        if process.size is not None:
            io.resize(*process.size)

    def _ended(self, container: Container, process: Process, end: Exit) -> None:
        process.ended(end)
        if process.busy is not None:
            process.busy.then(lambda _: self._announce(container, process, end))
        else:
            self._announce(container, process, end)

    def _announce(self, container: Container, process: Process, end: Exit) -> None:
        if not process.exec_id:
            if not container.private_pids:
                container.cgroup.signal(signal.SIGKILL)
            if not container.oom:
                self._out_of_memory(container)
            self._keep_exit(container, process, end)
        if process.io is not None:
            process.io.drain()
        self.publish(
            "/tasks/exit",
            events.TaskExit(
                container_id=container.id,
                id=process.exec_id or container.id,
                pid=process.pid,
                exit_status=end.status,
                exited_at=stamp(end.at),
            ),
        )
        process.exited.set(end)

    def _keep_exit(self, container: Container, process: Process, end: Exit) -> None:
        note = {"pid": process.pid, "status": end.status, "exited_at": end.at, "oom": container.oom}
        try:
            write_atomic(Path(container.bundle, EXIT_FILE), json.dumps(note).encode(), durable=False)
        except OSError as error:
            logger.error("%s: its exit cannot be kept on disk: %s", process, error)

    def _out_of_memory(self, container: Container) -> None:
        if container.cgroup.oom_kills():
            container.oom = True
            self.publish("/tasks/oom", events.TaskOOM(container_id=container.id))

    def _discard(self, container: Container) -> None:
        oom.unwatch(self.loop, container.oom_watch)
        container.oom_watch = -1
        for process in (container.init, *container.execs.values()):
            if process.io is not None:
                process.io.close()
        if container.mounted:
            mounts.unmount(container.rootfs)
        for name in (EXIT_FILE, RUNTIME_FILE):
            with suppress(OSError):
                os.unlink(os.path.join(container.bundle, name))
        if self.containers.get(container.id) is container:
            del self.containers[container.id]
        if not self.containers:
            self.on_empty()


def stamp(ns: int) -> Timestamp:
    """Return a time in ns since 1970 as a protobuf timestamp."""
    return Timestamp(seconds=ns // 1_000_000_000, nanos=ns % 1_000_000_000)
