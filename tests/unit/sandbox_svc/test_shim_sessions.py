"""The session protocol of the shim's stream socket, against a host whose processes tests write."""

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bulkhead import seqpacket
from bulkhead.errors import NotFound
from bulkhead.proto import shim_pb2
from sandbox_svc.shim import streams
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.processes import Process
from sandbox_svc.shim.reaper import Exit
from sandbox_svc.shim.stdio import ProcessIO
from sandbox_svc.shim.streams import Session, StreamServer
from sandbox_svc.shim.streamset import IoSpec, Streams
from sandbox_svc.shim.tickets import TOKEN_LENGTH, Tickets


class FakeContainer:
    """A container that runs."""

    def __init__(self, ident: str) -> None:
        self.id, self.oom = ident, False
        self.init = Process(ident, "", IoSpec())
        self.execs: dict[str, Process] = {}


class FakeHost:
    """Runs execs that do nothing, and keeps what was asked of it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.containers = {"c": FakeContainer("c")}
        self.null = os.open("/dev/null", os.O_RDWR)
        self.ran: list[Process] = []
        self.killed: list[Process] = []

    def find(self, ident: str) -> FakeContainer:
        if ident not in self.containers:
            raise NotFound(f"container {ident!r}")
        return self.containers[ident]

    def streams(self, ident: str, io_spec: IoSpec) -> ProcessIO:
        return ProcessIO(self.loop, self.null, io_spec)

    async def run_exec(self, ident: str, process: Process, io: Streams, deadline: float) -> None:
        assert isinstance(io, ProcessIO)
        io.started()
        self.ran.append(process)

    def kill_group(self, process: Process) -> bool:
        self.killed.append(process)
        return True


@pytest.fixture
def server() -> Iterator[StreamServer]:
    loop = Loop()
    loop.open()
    host = FakeHost(loop)
    made = StreamServer(loop, host, Tickets(loop))
    yield made
    for session in list(made.sessions):
        session.close()
    os.close(host.null)
    loop.close()


class Client:
    """stream-svc's end of a session."""

    def __init__(self, server: StreamServer) -> None:
        self.server = server
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        theirs.setblocking(False)
        server.sessions.add(Session(server, theirs))
        self.fds: list[int] = []

    def send(self, message: dict[str, Any]) -> None:
        seqpacket.send(self.sock, message)

    def receive(self) -> dict[str, Any] | None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.server.loop.turn(0.02)
            try:
                message, self.fds = seqpacket.receive(self.sock)
            except BlockingIOError:
                continue
            return message
        raise AssertionError("no answer")

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.send(message)
        answer = self.receive()
        assert answer is not None
        return answer

    def close(self) -> None:
        self.sock.close()
        self.server.loop.turn(0.02)


def ticket(server: StreamServer, **what: Any) -> str:
    """Register a ticket and return its token."""
    token = os.urandom(TOKEN_LENGTH // 2).hex()
    server.tickets.add(shim_pb2.AddTicketRequest(token=token, **what))
    return token


EXEC = shim_pb2.ExecTicket(container_id="c", process=b"{}", stdin=True, stdout=True)


def test_an_exec_session(server: StreamServer) -> None:
    """Redeem, begin, descriptors, exit; the hang-up kills."""
    client = Client(server)
    answer = client.ask({"redeem": ticket(server, exec=EXEC)})
    assert answer == {"ok": {"kind": "exec", "tty": False, "stdin": True, "stdout": True, "stderr": False}}
    assert client.ask({"begin": {}}) == {"started": {"fds": ["stdin", "stdout"]}}
    for fd in client.fds:
        os.close(fd)
    host = server.host
    assert isinstance(host, FakeHost)
    (process,) = host.ran
    process.exited.set(Exit(7, 1))
    assert client.receive() == {"exit": {"code": 7, "message": ""}}
    client.close()

    assert host.killed == [process]
    assert not server.sessions


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"begin": {}}, 9),
        ({"resize": {"width": 1, "height": 1}}, 9),
        ({"redeem": "unknown"}, 5),
        ({"redeem": 7}, 5),
        ({}, 9),
    ],
)
def test_nothing_happens_without_a_ticket(server: StreamServer, message: dict[str, Any], code: int) -> None:
    """A session starts with a good token; anything else is answered with its error and hung up."""
    client = Client(server)

    assert client.ask(message)["error"]["code"] == code
    assert client.receive() is None
    client.close()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"redeem": "again"}, 9),
        ({"connect": {"id": 1, "port": 80}}, 3),
        ({"begin": {"width": -1, "height": 3}}, 3),
        ({"resize": [1, 2]}, 3),
        ({"resize": {"width": "wide", "height": 1}}, 3),
    ],
)
def test_a_session_takes_only_what_is_its_own(server: StreamServer, message: dict[str, Any], code: int) -> None:
    """Another ticket, a connection in an exec session, and impossible sizes end the session with a reason."""
    client = Client(server)
    client.ask({"redeem": ticket(server, exec=EXEC)})

    assert client.ask(message)["error"]["code"] == code
    client.close()


def test_garbage_ends_the_session(server: StreamServer) -> None:
    """What is not JSON is refused, and descriptors that a client sends are closed."""
    client = Client(server)
    before = len(os.listdir("/proc/self/fd"))
    seqpacket.send(client.sock, {"redeem": "x"}, (0, 1))
    assert (client.receive() or {})["error"]["code"] == 5
    other = Client(server)
    other.sock.send(b"\xff{")

    assert (other.receive() or {})["error"]["code"] == 3
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    for each in (client, other):
        each.close()


def test_ports_that_were_not_asked_for_are_refused(server: StreamServer) -> None:
    """A port-forward session stays open and says no by id."""
    client = Client(server)
    forward = shim_pb2.PortForwardTicket(ports=[1])
    assert client.ask({"redeem": ticket(server, port_forward=forward)})["ok"]["ports"] == [1]
    refused = client.ask({"connect": {"id": 5, "port": 2}})
    failed = client.ask({"connect": {"id": 6, "port": 1}})

    assert refused["failed"]["id"] == 5
    assert failed["failed"]["id"] == 6
    assert "127.0.0.1" in failed["failed"]["message"]
    client.close()


def test_who_does_not_begin_is_hung_up_on(server: StreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that says nothing is ended in time."""
    monkeypatch.setattr(streams, "PATIENCE", 0.01)
    client = Client(server)

    assert (client.receive() or {})["error"]["code"] == 4
    client.close()


def test_attach_to_what_has_ended_is_refused(server: StreamServer) -> None:
    """A container that has exited has no streams."""
    client = Client(server)
    server.host.find("c").init.ended(Exit(0, 1))
    client.ask({"redeem": ticket(server, attach=shim_pb2.AttachTicket(container_id="c", stdout=True))})

    assert client.ask({"begin": {}})["error"]["code"] == 9
    client.close()
