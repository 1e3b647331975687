"""A shim of its own from a zygote of its own, with bundles made by hand: what the shim's tests need and no service."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from bulkhead import paths, seqpacket
from bulkhead.proto import shim_pb2
from bulkhead.proto.containerd import runc_options_pb2
from bulkhead.proto.containerd import task_pb2 as pb
from bulkhead.proto.containerd.task_types_pb2 import STOPPED
from bulkhead.ttrpc import Client
from sandbox_svc.shim import uris
from support.images import busybox_layer
from support.leaks import cgroups_named

TASK, SHIM = "containerd.task.v2.Task", "bulkhead.shim.v1.Shim"
TIMEOUT = 60.0

M = TypeVar("M", bound=Message)


def process(*args: str, tty: bool = False, **fields: Any) -> bytes:
    """Return an OCI process as JSON."""
    base = {"args": args, "cwd": "/", "env": ["PATH=/bin"], "terminal": tty, "user": {"uid": 0, "gid": 0}}
    return json.dumps(base | fields).encode()


class Zygote:
    """A zygote in a scratch directory; use it as a context manager."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bhshim"))
        self.state = self.directory / "state" / "io.bulkhead"
        self.config = self.directory / "config.toml"
        self.config.write_text(f'version = 2\nroot = "{self.directory}/root"\nstate = "{self.directory}/state"\n')

    def __enter__(self) -> "Zygote":
        command = [str(Path(sys.executable).parent / "bulkhead-shim-zygote"), "--config", str(self.config)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        until(lambda: paths.zygote_socket(self.state).exists())
        return self

    def order(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send an order and return the answer."""
        sock = seqpacket.connect(str(paths.zygote_socket(self.state)), TIMEOUT)
        try:
            seqpacket.send(sock, message)
            answer, _ = seqpacket.receive(sock)
        finally:
            sock.close()
        assert answer is not None
        return answer

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        # A runtime removes a container's cgroup, not the parent that it had to make.
        for parent in cgroups_named(self.directory.name):
            parent.rmdir()
        shutil.rmtree(self.directory)


class Pod:
    """A shim and its containers."""

    def __init__(self, zygote: Zygote, name: str, runtime: str) -> None:
        self.zygote, self.name, self.runtime = zygote, name, runtime
        self.base = zygote.directory / name
        self.base.mkdir()
        self.directory = paths.shim_directory(zygote.state, name)
        self.ids: list[str] = []

    def fork(self, **order: Any) -> "Pod":
        """Have the shim, or with kind="keeper" a keeper, forked and connect to it."""
        fork = {"id": self.name, "namespace": "k8s.io", "directory": str(self.directory), "stream_gid": 0}
        answer = self.zygote.order({"fork": fork | {"bundles": str(self.base)} | order})
        self.pid: int = answer["forked"]["pid"]
        self.client = Client(str(self.directory / "task"))
        return self

    def task(self, method: str, message: Message, kind: type[M]) -> M:
        """Call the task service."""
        return self.client.call(TASK, method, message, kind, TIMEOUT)

    def shim(self, method: str, message: Message, kind: type[M], fds: list[int] | None = None) -> M:
        """Call the shim service."""
        return self.client.call(SHIM, method, message, kind, TIMEOUT, fds=fds)

    def log(self, ident: str) -> Path:
        """Return where a container's log is."""
        return self.base / f"{ident}.log"

    def lines(self, ident: str) -> list[tuple[str, str, str]]:
        """Return a container's log as stream, tag and text of each line."""
        words = [line.split(" ", 3) for line in self.log(ident).read_bytes().decode().split("\n")[:-1]]
        return [(stream, tag, text) for _, stream, tag, text in words]

    def bundle(
        self, ident: str, *args: str, tty: bool = False, change: Callable[[dict[str, Any]], None] | None = None
    ) -> Path:
        """Make a bundle of busybox, unless it is there, that runs these arguments; `change` may edit the spec."""
        bundle = self.base / ident
        if bundle.exists():
            return bundle
        root = bundle / "rootfs"
        root.mkdir(parents=True)
        subprocess.run(["tar", "-xC", root], input=busybox_layer(), check=True, timeout=60)
        subprocess.run(["runc", "spec"], cwd=bundle, check=True, timeout=30)
        spec = json.loads((bundle / "config.json").read_text())
        spec["process"] |= {"args": list(args), "terminal": tty, "env": ["PATH=/bin"]}
        spec["root"]["readonly"] = False
        spec["linux"]["cgroupsPath"] = f"/{self.zygote.directory.name}/{ident}"
        if change is not None:
            change(spec)
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    def options(self) -> Packed:
        """Return the runtime's options."""
        options = runc_options_pb2.Options(binary_name=self.runtime, root=f"{self.zygote.directory}/run")
        return Packed(type_url="containerd.runc.v1.Options", value=options.SerializeToString())

    def create(
        self, ident: str, *args: str, stdin: str = "", line_size: int = 16384, tty: bool = False, **fields: Any
    ) -> int:
        """Create a container with a CRI log and return its pid."""
        bundle = self.bundle(ident, *args, tty=tty, change=fields.pop("change", None))
        log = uris.cri_log(str(self.log(ident)), line_size)
        request = pb.CreateTaskRequest(
            id=ident,
            bundle=str(bundle),
            stdin=stdin,
            stdout=fields.pop("stdout", log),
            stderr="" if tty else fields.pop("stderr", log),
            terminal=tty,
            options=self.options(),
            **fields,
        )
        pid = self.task("Create", request, pb.CreateTaskResponse).pid
        self.ids.append(ident)
        return pid

    def start(self, ident: str) -> None:
        """Start a created container."""
        self.task("Start", pb.StartRequest(id=ident), pb.StartResponse)

    def run(self, ident: str, *args: str, **fields: Any) -> int:
        """Create and start a container and return its pid."""
        pid = self.create(ident, *args, **fields)
        self.start(ident)
        return pid

    def wait(self, ident: str) -> int:
        """Wait for a container's exit status."""
        return self.task("Wait", pb.WaitRequest(id=ident), pb.WaitResponse).exit_status

    def kill(self, ident: str, number: int = 9, **fields: Any) -> None:
        """Signal a container."""
        self.task("Kill", pb.KillRequest(id=ident, signal=number, **fields), Empty)

    def delete(self, ident: str) -> pb.DeleteResponse:
        """Delete a container that has exited."""
        answer = self.task("Delete", pb.DeleteRequest(id=ident), pb.DeleteResponse)
        self.ids.remove(ident)
        return answer

    def state(self, ident: str, exec_id: str = "") -> pb.StateResponse:
        """Return what State says."""
        return self.task("State", pb.StateRequest(id=ident, exec_id=exec_id), pb.StateResponse)

    def exec_sync(
        self, ident: str, *args: str, fds: list[int] | None = None, **fields: Any
    ) -> shim_pb2.ExecSyncResponse:
        """Run a command in a container."""
        limits = {"timeout_ms": 30_000, "drain_ms": 2_000} | fields
        request = shim_pb2.ExecSyncRequest(container_id=ident, process=process(*args), **limits)
        return self.shim("ExecSync", request, shim_pb2.ExecSyncResponse, fds)

    def session(self, token: str, **what: Any) -> "Session":
        """Register a ticket and redeem it."""
        ticket = shim_pb2.AddTicketRequest(token=token.ljust(32, "-"), ttl_ms=60_000, **what)
        self.shim("AddTicket", ticket, shim_pb2.AddTicketResponse)
        return Session(str(self.directory / "stream"), ticket.token)

    def close(self) -> None:
        """Kill what is left and have the shim leave."""
        for ident in list(self.ids):
            if self.state(ident).status != STOPPED:
                self.kill(ident)
                self.wait(ident)
            self.delete(ident)
        self.task("Shutdown", pb.ShutdownRequest(), Empty)
        self.client.close()
        until(lambda: not self.directory.exists())


class Session:
    """A stream session, as stream-svc has it."""

    def __init__(self, path: str, token: str) -> None:
        self.sock = seqpacket.connect(path, TIMEOUT)
        self.ok = self.ask({"redeem": token})

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and return the answer, whose descriptors are kept in `fds`."""
        seqpacket.send(self.sock, message)
        return self.receive()

    def receive(self) -> dict[str, Any]:
        """Return the next message."""
        message, self.fds = seqpacket.receive(self.sock)
        assert message is not None
        return message

    def begin(self, **size: int) -> dict[str, int]:
        """Begin and return the descriptors by name."""
        answer = self.ask({"begin": size})
        assert "started" in answer, answer
        return dict(zip(answer["started"]["fds"], self.fds, strict=True))

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def read_all(fd: int) -> bytes:
    """Read a pipe or terminal to its end and close it."""
    chunks = []
    try:
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
    except OSError:
        pass  # a terminal whose last user is gone
    finally:
        os.close(fd)
    return b"".join(chunks)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def answer_on(sock: socket.socket) -> bytes:
    """Read a connection to its end."""
    with sock:
        sock.settimeout(TIMEOUT)
        return b"".join(iter(lambda: sock.recv(65536), b""))
