"""What happens to containers: making them, starting, signalling and removing them and their execs."""

import itertools
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from bulkhead.errors import AlreadyExists, BulkheadError, FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto.containerd import events_pb2 as events
from bulkhead.proto.containerd.task_pb2 import CreateTaskRequest
from bulkhead.proto.containerd.task_types_pb2 import CREATED, PAUSED, RUNNING
from sandbox_svc.shim import mounts, notes, null, oom, options
from sandbox_svc.shim.cgroup import Cgroup
from sandbox_svc.shim.endings import EXIT_FILE, Endings, Publish, stamp
from sandbox_svc.shim.launch import Launcher
from sandbox_svc.shim.loop import Future, Loop
from sandbox_svc.shim.processes import Container, Process, has_private_pids
from sandbox_svc.shim.reaper import Exit, Reaper
from sandbox_svc.shim.runtime import Runtime
from sandbox_svc.shim.stdio import ProcessIO
from sandbox_svc.shim.streamset import IoSpec, Streams

logger = logging.getLogger(__name__)

#: Seconds that a container may take to be gone after the runtime has killed and removed it.
GONE_WAIT = 10.0
#: What the `delete` command must know when it runs without the shim.
RUNTIME_FILE = "runtime.json"

_numbers = itertools.count()


class Lifecycle:
    """The containers of one pod."""

    def __init__(self, loop: Loop, reaper: Reaper, publish: Publish) -> None:
        self.loop, self.reaper, self.publish = loop, reaper, publish
        self.containers: dict[str, Container] = {}
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        #: Called after the last container is gone.
        self.on_empty: Callable[[], object] = lambda: None
        #: What makes containers; the rehearsal has another.
        self.runtime: type[Runtime] = Runtime
        self._launcher = Launcher(loop, reaper)
        self._endings = Endings(publish)
        self._namespace = ""

    def begin(self, namespace: str, console_base: str) -> None:
        """Serve containers of a namespace, in the process that is to be the shim.

        Console sockets are named by console_base and a number: a bundle's path is often beyond a socket's 107 bytes.
        """
        self._namespace, self._launcher.console_base = namespace, console_base
        null.replace(self.null)

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
        runtime = self.runtime(self.loop, self.reaper, self.null, options.read(request.options), self._namespace)
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
        self.publish(
            "/tasks/create",
            events.TaskCreate,
            container_id=request.id,
            bundle=request.bundle,
            rootfs=request.rootfs,
            io=io_spec._asdict(),
            pid=container.init.pid,
        )
        self.loop.soon(lambda: busy.set(None))
        return container.init.pid

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
                self.publish("/tasks/start", events.TaskStart, container_id=container.id, pid=process.pid)
            finally:
                self.loop.soon(lambda: busy.set(None))
        return process.pid

    def add_exec(self, container: Container, exec_id: str, io_spec: IoSpec, spec: bytes) -> None:
        """Remember a further process, to be launched by `start`."""
        if not exec_id or "/" in exec_id or exec_id.startswith("."):
            raise InvalidArgument(f"exec id {exec_id!r} cannot be a file name")
        if exec_id in container.execs:
            raise AlreadyExists(f"exec {exec_id!r} exists in container {container.id!r}")
        container.init.require("exec")
        container.execs[exec_id] = Process(container.id, exec_id, io_spec, spec)
        self.publish("/tasks/exec-added", events.TaskExecAdded, container_id=container.id, exec_id=exec_id)

    def streams(self, ident: str, io_spec: IoSpec) -> ProcessIO:
        """Open the streams of a process, owned as the options of the container's runtime say."""
        chosen = self.find(ident).runtime.options
        try:
            return ProcessIO(self.loop, self.null, io_spec, chosen.io_uid, chosen.io_gid)
        except OSError as error:
            raise FailedPrecondition(f"streams of container {ident!r} cannot be opened: {error}") from error

    async def run_exec(self, ident: str, process: Process, io: Streams, deadline: float) -> None:
        """Launch an exec with streams from `streams`; they are closed if it fails."""
        assert isinstance(io, ProcessIO)
        container = self.find(ident)
        container.init.require("exec")
        spec_file = f"{container.bundle}/exec-{next(_numbers)}.json"

        async def step(pid_file: str, stdio: Sequence[int], console: str) -> None:
            notes.write(spec_file, process.sized_spec())
            await container.runtime.exec(ident, container.bundle, spec_file, pid_file, stdio, console, deadline)

        try:
            await self._launcher.launch(
                process, io, container.bundle, step, lambda end: self._endings.ended(container, process, end)
            )
        finally:
            notes.remove(spec_file)
        process.started()

    def kill(self, container: Container, process: Process, number: int, *, everybody: bool) -> None:
        """Signal a process, or every process of the container; NotFound if it has ended."""
        if not 0 <= number < signal.NSIG:
            raise InvalidArgument(f"signal {number} does not exist")
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
        """Kill an exec and its process group, which holds what it started; whether it was alive.

        runc makes it the leader of its group, crun leaves it in the group that the shim made for the runtime.
        """
        if process.end is not None or not self.reaper.alive(process.pid):
            return False
        group, container = os.getpgid(process.pid), self.containers.get(process.container_id)
        init = container.init.pid if container is not None else 0
        if group in (os.getpgrp(), os.getpgid(init) if self.reaper.alive(init) else 0):
            os.kill(process.pid, signal.SIGKILL)
        else:
            os.killpg(group, signal.SIGKILL)
        return True

    async def freeze(self, container: Container, action: str) -> None:
        """Pause or resume a container."""
        async with container.turn:
            container.init.require(action)
            await container.runtime.call([action, container.id], container.bundle, 0)
            if container.init.end is None:
                container.init.status = PAUSED if action == "pause" else RUNNING
        if action == "pause":
            self.publish("/tasks/paused", events.TaskPaused, container_id=container.id)
        else:
            self.publish("/tasks/resumed", events.TaskResumed, container_id=container.id)

    async def update(self, container: Container, resources: bytes) -> None:
        """Set resource limits, given as an OCI runtime-spec LinuxResources in JSON."""
        async with container.turn:
            container.init.require("update")
            path = f"{container.bundle}/update-{next(_numbers)}.json"
            try:
                notes.write(path, resources)
                await container.runtime.call(["update", "--resources", path, container.id], container.bundle, 0)
            finally:
                notes.remove(path)

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
            if self.containers.get(container.id) is not container:
                raise NotFound(f"container {container.id!r} is not in this shim")
            if process.status != CREATED:
                process.require("delete")
            await container.runtime.delete(container.id, container.bundle, deadline)
            await self.loop.within(process.exited, GONE_WAIT, f"the end of {process}")
        end = process.exited.result()
        self._discard(container)
        self.publish(
            "/tasks/delete",
            events.TaskDelete,
            container_id=container.id,
            pid=process.pid,
            exit_status=end.status,
            exited_at=stamp(end.at),
        )
        return process.pid, end

    async def _make(self, container: Container, request: CreateTaskRequest, deadline: float) -> None:
        runtime = container.runtime
        note = {"binary": runtime.binary, "root": runtime.root, "systemd": runtime.options.systemd_cgroup}
        notes.write(f"{container.bundle}/{RUNTIME_FILE}", json.dumps(note).encode())
        if request.rootfs:
            os.makedirs(container.rootfs, exist_ok=True)
            container.mounted = True
            mounts.execute(mounts.plan(request.rootfs, container.rootfs), container.rootfs)
        init = container.init
        io = self.streams(container.id, init.io_spec)

        async def step(pid_file: str, stdio: Sequence[int], console: str) -> None:
            await runtime.create(container.id, container.bundle, pid_file, stdio, console, deadline)

        try:
            await self._launcher.launch(
                init, io, container.bundle, step, lambda end: self._endings.ended(container, init, end)
            )
        except BaseException:
            # The runtime cleans up after itself, except where it was killed or its terminal never came.
            with suppress(BulkheadError):
                await runtime.delete(container.id, container.bundle, deadline)
            raise
        container.cgroup = Cgroup.of(init.pid)
        self._endings.tally.add(container.id, container.cgroup)
        container.private_pids = has_private_pids(init.pid)
        container.oom_watch = oom.watch(self.loop, container.cgroup, lambda: self._endings.out_of_memory(container))

    async def _start_exec(self, container: Container, process: Process, deadline: float) -> int:
        process.require("start")
        if process.busy is not None:
            raise FailedPrecondition(f"{process} is being started")
        process.busy = busy = Future[None]()
        try:
            io = self.streams(container.id, process.io_spec)
            await self.run_exec(container.id, process, io, deadline)
        except BaseException:
            process.busy = None
            raise
        finally:
            self.loop.soon(lambda: busy.set(None))
        self.publish(
            "/tasks/exec-started",
            events.TaskExecStarted,
            container_id=container.id,
            exec_id=process.exec_id,
            pid=process.pid,
        )
        return process.pid

    def _discard(self, container: Container) -> None:
        oom.unwatch(self.loop, container.oom_watch)
        container.oom_watch = -1
        self._endings.tally.forget(container.id)
        for process in (container.init, *container.execs.values()):
            if process.io is not None:
                process.io.close()
        if container.mounted:
            mounts.unmount(container.rootfs)
        # A runtime that was killed in its delete, too, leaves that to whoever finds the note.
        for name in (EXIT_FILE,) if container.runtime.keeps(container.id) else (EXIT_FILE, RUNTIME_FILE):
            notes.remove(f"{container.bundle}/{name}")
        if self.containers.get(container.id) is container:
            del self.containers[container.id]
        if not self.containers:
            self.on_empty()
