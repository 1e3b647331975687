"""The keeper: a process of ours beside a foreign shim, which it makes look like our own.

It serves the task service by passing calls on, and bulkhead.shim.v1 and the stream socket itself. Where Create names a
CRI log or a CRI standard input, the foreign shim is given named pipes in the bundle, and the keeper has their other
ends: it writes the log, serves attach, and runs execs through the foreign shim's own Task.Exec. It also holds open
the named pipe `log` of each bundle, without whose reader a stock shim serves nothing.

A keeper that was killed is forked anew with the same order, and finds its containers by KEEPER_FILE in their bundles:
the foreign shim has both ends of its pipes open, so that containers have waited meanwhile, and lost nothing.
"""

import itertools
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty

from bulkhead.errors import BulkheadError, NotFound, Unavailable
from bulkhead.proto.containerd import task_pb2 as pb
from sandbox_svc.shim.kept import KeptIO
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.pipes import Source
from sandbox_svc.shim.processes import Process
from sandbox_svc.shim.reaper import Exit
from sandbox_svc.shim.server import Answer, Method
from sandbox_svc.shim.sinks import open_fifo
from sandbox_svc.shim.streamset import IoSpec, Streams
from sandbox_svc.shim.task import SERVICES
from sandbox_svc.shim.upstream import DEADLINE, Upstream

logger = logging.getLogger(__name__)

KEEPER_FILE = "keeper.json"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
#: Passed on without a look.
RELAYED = ("State", "Pids", "Pause", "Resume", "Checkpoint", "Kill", "Exec", "ResizePty", "Update", "Stats", "Connect")
#: Seconds between two questions to a foreign shim that does not answer.
PATIENCE = 1.0
#: Seconds after an exit that a container's last output may take to come through its pipes.
LAST_OUTPUT = 2.0

_numbers = itertools.count()


@dataclass
class KeptContainer:
    """A container of the foreign shim."""

    id: str
    bundle: str
    init: Process
    execs: dict[str, Process]
    oom: bool = False
    log: Source | None = None


class Keeper:
    """The containers of a foreign shim, seen from beside it."""

    def __init__(self, loop: Loop, upstream: Upstream, directory: str, shutdown: Callable[[], None]) -> None:
        self.loop, self._upstream, self._directory, self._shutdown = loop, upstream, directory, shutdown
        self.containers: dict[str, KeptContainer] = {}
        #: Called when the last container is gone.
        self.on_empty: Callable[[], object] = lambda: None

    def find(self, ident: str) -> KeptContainer:
        """Return a container; NotFound if the keeper has none of that id."""
        container = self.containers.get(ident)
        if container is None:
            raise NotFound(f"container {ident!r} is not kept here")
        return container

    def streams(self, ident: str, io_spec: IoSpec) -> KeptIO:
        """Return streams for an exec in a container."""
        return self._pipes(self.find(ident), io_spec, f"exec-{os.getpid()}-{next(_numbers)}")

    async def run_exec(self, ident: str, process: Process, io: Streams, deadline: float) -> None:
        """Launch an exec through the foreign shim; its streams are closed if that fails."""
        assert isinstance(io, KeptIO)
        limit = deadline or DEADLINE
        # Unique beyond this keeper's life: the foreign shim may still know the execs of the one before.
        process.exec_id = io.exec_id
        try:
            io.prepare()
            names = io.names()
            spec = Packed(type_url=PROCESS_TYPE, value=process.sized_spec())
            request = pb.ExecProcessRequest(id=ident, exec_id=io.exec_id, spec=spec, **names._asdict())
            await self._upstream.call("Exec", request, Empty, limit)
            try:
                start = pb.StartRequest(id=ident, exec_id=io.exec_id)
                process.pid = (await self._upstream.call("Start", start, pb.StartResponse, limit)).pid
            except BulkheadError:
                self._forget_exec(ident, io.exec_id)
                raise
        except BaseException:
            io.close()
            raise
        process.io = io
        process.started()
        if process.size is not None:
            io.resize(*process.size)
        self.loop.detach(self._follow_exec(ident, process))

    def kill_group(self, process: Process) -> bool:
        """Kill an exec; its group is out of reach, for its pid may be a guest's."""
        if process.end is not None or not process.pid:
            return False
        request = pb.KillRequest(id=process.container_id, exec_id=process.exec_id, signal=9)
        self._tell("Kill", request)
        return True

    def methods(self) -> dict[str, Method]:
        """Return the task service's methods: most are passed on, four concern the streams."""

        def relayed(name: str) -> Method:
            async def call(payload: bytes, limit: float) -> Answer:
                return Answer(await self._upstream.relay(name, payload, limit or DEADLINE))

            return call

        table: dict[str, Method] = {name: relayed(name) for name in RELAYED}
        table |= {
            "Create": self._create,
            "Start": relayed("Start"),
            "Wait": self._wait,
            "CloseIO": self._close_io,
            "Delete": self._delete,
            "Shutdown": self._shut_down,
        }
        return {f"{service}/{name}": call for service in SERVICES for name, call in table.items()}

    def adopt(self, bundles: str) -> None:
        """Take up the containers of a keeper that died."""
        for entry in os.scandir(bundles):
            try:
                note = json.loads(Path(entry.path, KEEPER_FILE).read_bytes())
            except (OSError, ValueError):
                continue
            if note.get("directory") == self._directory:
                spec = IoSpec(note["stdin"], note["stdout"], note["stderr"], note["terminal"])
                container = self._keep(note["id"], entry.path, spec)
                self.loop.detach(self._follow(container))

    async def _create(self, payload: bytes, limit: float) -> Answer:
        request = pb.CreateTaskRequest.FromString(payload)
        spec = IoSpec(request.stdin, request.stdout, request.stderr, request.terminal)
        container = self._keep(request.id, request.bundle, spec)
        try:
            assert isinstance(container.init.io, KeptIO)
            names = container.init.io.names()
            request.stdin, request.stdout, request.stderr = names.stdin, names.stdout, names.stderr
            note = {"id": request.id, "directory": self._directory, **spec._asdict()}
            Path(request.bundle, KEEPER_FILE).write_text(json.dumps(note))
            answer = await self._upstream.relay("Create", request.SerializeToString(), limit or DEADLINE)
        except BaseException:
            self._drop(container)
            raise
        container.init.pid = pb.CreateTaskResponse.FromString(answer).pid
        self.loop.detach(self._follow(container))
        return Answer(answer)

    async def _wait(self, payload: bytes, _: float) -> Answer:
        """Answer the init's exit after its last output was written; an exec of the caller's own is passed on."""
        request = pb.WaitRequest.FromString(payload)
        answer = await self._upstream.relay("Wait", payload, 0)
        container = self.containers.get(request.id)
        if container is not None and not request.exec_id:
            await container.init.exited
        return Answer(answer)

    async def _close_io(self, payload: bytes, limit: float) -> Answer:
        request = pb.CloseIORequest.FromString(payload)
        container = self.containers.get(request.id)
        if container is not None and not request.exec_id and container.init.io is not None:
            container.init.io.close_stdin()
            return Answer(b"")
        return Answer(await self._upstream.relay("CloseIO", payload, limit or DEADLINE))

    async def _delete(self, payload: bytes, limit: float) -> Answer:
        request = pb.DeleteRequest.FromString(payload)
        answer = await self._upstream.relay("Delete", payload, limit or DEADLINE)
        if not request.exec_id and request.id in self.containers:
            self._drop(self.containers[request.id])
        return Answer(answer)

    async def _shut_down(self, payload: bytes, limit: float) -> Answer:
        with suppress(Unavailable):  # it hangs up rather than answer
            await self._upstream.relay("Shutdown", payload, limit or DEADLINE)
        if not self.containers:
            self._shutdown()
        return Answer(b"")

    def _keep(self, ident: str, bundle: str, spec: IoSpec) -> KeptContainer:
        init = Process(ident, "", spec)
        container = KeptContainer(ident, bundle, init, {})
        init.io = self._pipes(container, spec, "")
        self.containers[ident] = container
        with suppress(OSError):
            with suppress(FileExistsError):
                os.mkfifo(f"{bundle}/log", 0o700)
            container.log = Source(self.loop, open_fifo(f"{bundle}/log"), [])
        return container

    def _drop(self, container: KeptContainer) -> None:
        self.containers.pop(container.id, None)
        if container.init.io is not None:
            container.init.io.close()
        if container.log is not None:
            container.log.close()
        with suppress(OSError):
            os.unlink(f"{container.bundle}/{KEEPER_FILE}")
        if not self.containers:
            self.on_empty()

    def _pipes(self, container: KeptContainer, spec: IoSpec, exec_id: str) -> KeptIO:
        ident = container.id
        return KeptIO(
            self.loop,
            f"{container.bundle}/{exec_id or 'init'}",
            spec,
            lambda: self._tell("CloseIO", pb.CloseIORequest(id=ident, exec_id=exec_id, stdin=True)),
            lambda w, h: self._tell("ResizePty", pb.ResizePtyRequest(id=ident, exec_id=exec_id, width=w, height=h)),
            exec_id,
        )

    async def _follow(self, container: KeptContainer) -> None:
        """Learn the init's exit, however often the foreign shim hangs up meanwhile."""
        process = container.init
        while container.id in self.containers:
            try:
                answer = await self._upstream.call("Wait", pb.WaitRequest(id=container.id), pb.WaitResponse, 0)
            except NotFound:
                return
            except BulkheadError:
                await self.loop.sleep(PATIENCE)
                continue
            await self._last_output(process)
            _settle(process, answer)
            return

    async def _follow_exec(self, ident: str, process: Process) -> None:
        try:
            wait = pb.WaitRequest(id=ident, exec_id=process.exec_id)
            answer = await self._upstream.call("Wait", wait, pb.WaitResponse, 0)
        except BulkheadError as error:
            process.exited.fail(error)
            return
        await self._last_output(process)
        _settle(process, answer)
        self._forget_exec(ident, process.exec_id)

    async def _last_output(self, process: Process) -> None:
        """Wait until the pipes have ended: the foreign shim copies into them after the exit, too."""
        for ended in process.io.output_ended() if process.io is not None else ():
            with suppress(BulkheadError):
                await self.loop.within(ended, LAST_OUTPUT, "the last output")

    def _forget_exec(self, ident: str, exec_id: str) -> None:
        self._tell("Delete", pb.DeleteRequest(id=ident, exec_id=exec_id))

    def _tell(self, method: str, message: Any) -> None:
        """Call without waiting; what the foreign shim says to it is not needed."""

        async def call() -> None:
            with suppress(BulkheadError):
                await self._upstream.call(method, message, Empty)

        self.loop.detach(call())


def _settle(process: Process, answer: pb.WaitResponse) -> None:
    end = Exit(answer.exit_status, answer.exited_at.ToNanoseconds())
    process.ended(end)
    process.exited.set(end)
