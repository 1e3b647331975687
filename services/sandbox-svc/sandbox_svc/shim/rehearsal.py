"""A rehearsal in the zygote: one container's whole life with a runtime that makes none.

What a process does for the first time costs memory: code is specialised, caches fill, the heap grows into shape. Done
before the fork it is done once for all pods; done after it, each pod would have a copy of those pages to itself.
"""

import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import Message

from bulkhead import seqpacket
from bulkhead.proto import shim_pb2
from bulkhead.proto.containerd import task_pb2 as pb
from bulkhead.proto.containerd.runc_options_pb2 import Options
from bulkhead.proto.containerd.types_pb2 import Mount
from bulkhead.ttrpc_frames import Decoder, request
from sandbox_svc import linux
from sandbox_svc.shim import mounts, uris, view
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.reaper import Reaper
from sandbox_svc.shim.runtime import Runtime
from sandbox_svc.shim.shim import Shim
from sandbox_svc.shim.tickets import TOKEN_LENGTH

logger = logging.getLogger(__name__)

_TASK = "containerd.task.v3.Task"
_SHIM = "bulkhead.shim.v1.Shim"
#: Seconds that the whole may take; what is left out then is merely dearer.
LIMIT = 5.0


class _Actor(Runtime):
    """A runtime whose containers are `sleep` and whose execs are `true`."""

    __slots__ = ()

    def __init__(self, loop: Loop, reaper: Reaper, null: int, options: Options, namespace: str) -> None:
        super().__init__(loop, reaper, null, options, namespace)
        self._cured = view.hybrid()

    async def create(
        self, ident: str, bundle: str, pid_file: str, stdio: Sequence[int], console: str, deadline: float
    ) -> None:
        """Start a process that lives until it is killed."""
        await self._act(["sleep", "60"], bundle, pid_file, stdio)

    async def exec(
        self, ident: str, bundle: str, process: str, pid_file: str, stdio: Sequence[int], console: str, deadline: float
    ) -> None:
        """Start a process that says something and ends."""
        await self._act(["echo", "rehearsal"], bundle, pid_file, stdio)

    async def delete(self, ident: str, bundle: str, deadline: float) -> None:
        """Do nothing, the long way."""
        await self.call(["delete"], bundle, deadline)

    async def _act(self, arguments: list[str], bundle: str, pid_file: str, stdio: Sequence[int]) -> None:
        await self.call(["act"], bundle, 0)
        path = shutil.which(arguments[0]) or "/bin/true"
        pid, _ = self._reaper.spawn(path, arguments, (stdio[0], stdio[1], stdio[2]))
        Path(pid_file).write_text(str(pid))


class Rehearsal:
    """A shim without an address, and the one client it has."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._shim = Shim()
        self._shim.loop.open()
        self._shim.reaper.begin()
        self._shim.lifecycle.begin("rehearsal", f"{directory}/c")
        self._shim.lifecycle.runtime = _Actor
        self._client, self._doors = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), list[socket.socket]()
        self._shim.server.listen(self._door(socket.SOCK_STREAM))
        self._shim.streams.listen(self._door(socket.SOCK_SEQPACKET))
        self._client.connect(self._doors[0].getsockname())
        self._client.setblocking(False)
        self._decoder = Decoder()
        self._stream = 1

    def run(self) -> None:
        """Go through a container's life."""
        log = uris.cri_log(f"{self._directory}/log", 64)
        create = pb.CreateTaskRequest(
            id="r", bundle=self._directory, stdin=uris.cri_stdin(once=True), stdout=log, stderr=log
        )
        create.options.type_url, create.options.value = "containerd.runc.v1.Options", b"\x32\x04true"
        process = json.dumps({"args": ["true"], "cwd": "/"}).encode()
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
        mounts.plan([Mount(type="overlay", source="overlay", options=["lowerdir=/a:/b", "ro"])], "/nonexistent")
        mounts.unmount("/nonexistent")
        self._call(_SHIM, "Info", shim_pb2.InfoRequest())
        self._call(_TASK, "Create", create)
        self._call(_TASK, "Start", pb.StartRequest(id="r"))
        for _ in range(4):
            self._call(_TASK, "State", pb.StateRequest(id="r"))
            self._call(_TASK, "Stats", pb.StatsRequest(id="r"))
            exec_sync = shim_pb2.ExecSyncRequest(container_id="r", process=process, timeout_ms=2000, drain_ms=1000)
            self._call(_SHIM, "ExecSync", exec_sync)
        self._session("exec", process)
        self._session("attach", process)
        self._call(_SHIM, "ReopenLog", shim_pb2.ReopenLogRequest(container_id="r"))
        self._call(_TASK, "Kill", pb.KillRequest(id="r", signal=signal.SIGKILL))
        self._call(_TASK, "Wait", pb.WaitRequest(id="r"))
        self._call(_SHIM, "Exits", shim_pb2.ExitsRequest())
        self._call(_TASK, "Delete", pb.DeleteRequest(id="r"))
        self._call(_TASK, "State", pb.StateRequest(id="r"))

    def close(self) -> None:
        """Leave nothing behind but the memory."""
        for connection in list(self._shim.server.connections):
            connection.close()
        for session in list(self._shim.streams.sessions):
            session.close()
        for sock in (self._client, *self._doors):
            sock.close()
        self._shim.close()

    def _door(self, kind: int) -> socket.socket:
        """Return a listening socket at an address that the kernel makes up."""
        door = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        door.bind("")
        door.listen(2)
        self._doors.append(door)
        return door

    def _session(self, kind: str, process: bytes) -> None:
        ticket = shim_pb2.AddTicketRequest(token=kind.ljust(TOKEN_LENGTH, "-"))
        what = ticket.exec if kind == "exec" else ticket.attach
        what.container_id, what.stdin, what.stdout, what.stderr = "r", True, True, True
        if kind == "exec":
            ticket.exec.process = process
        self._call(_SHIM, "AddTicket", ticket)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self._doors[1].getsockname())
        client.setblocking(False)
        seqpacket.send(client, {"redeem": ticket.token})
        self._turns(lambda: _received(client))
        seqpacket.send(client, {"begin": {"width": 80, "height": 24}})
        self._turns(lambda: _received(client))
        if kind == "exec":
            self._turns(lambda: _received(client))
        client.close()
        self._shim.loop.turn(0.01)

    def _send(self, service: str, method: str, message: Message) -> None:
        frame = request(self._stream, service, method, message.SerializeToString(), LIMIT, {"rehearsal": "yes"})
        self._stream += 2
        self._client.sendall(frame)

    def _call(self, service: str, method: str, message: Message) -> None:
        self._send(service, method, message)
        self._turns(self._answered)

    def _answered(self) -> bool:
        try:
            return bool(self._decoder.feed(self._client.recv(65536)))
        except BlockingIOError:
            return False

    def _turns(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT
        while not done() and time.monotonic() < until:
            self._shim.loop.turn(0.05)


def rehearse() -> None:
    """Rehearse; a failure costs memory later, and nothing else, so it is only logged."""
    directory = tempfile.mkdtemp(prefix="bulkhead-rehearsal-")
    play: Rehearsal | None = None
    try:
        play = Rehearsal(directory)
        play.run()
    except Exception:
        logger.exception("the rehearsal failed")
    finally:
        if play is not None:
            play.close()
        shutil.rmtree(directory, ignore_errors=True)


def _received(client: socket.socket) -> bool:
    try:
        _, fds = seqpacket.receive(client)
    except BlockingIOError:
        return False
    for fd in fds:
        os.close(fd)
    return True
