"""A fake of a shim's stream socket: real sockets, pipes and ptys, the session protocol, and programs that tests write.

One FakeShim stands for the shims of any number of pods; its programs run in threads, so a unit test needs no process.
"""

import contextlib
import fcntl
import os
import pty
import secrets
import socket
import struct
import subprocess
import termios
import threading
import tty
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bulkhead import paths, seqpacket

NAME = "0123456789abcdef"


@dataclass
class Process:
    """What a program is given: its ends of the pipes (or the pty three times), and what the client did."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    sizes: list[tuple[int, int]] = field(default_factory=list)
    resized: threading.Event = field(default_factory=threading.Event)
    #: Set when the session was hung up.
    gone: threading.Event = field(default_factory=threading.Event)

    def read(self, size: int = 65536) -> bytes:
        """Read input; b"" at its end, also where a pty was hung up."""
        try:
            return os.read(self.stdin, size)
        except OSError:
            return b""

    def write(self, data: bytes, *, error: bool = False) -> int:
        """Write all of the data to standard output or error; returns 0, so that a program may be one expression."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.stderr if error else self.stdout, view) :]
        return 0


#: Runs until it returns its exit code.
Program = Callable[[Process], int]


def command(*arguments: str) -> Program:
    """Return a program that runs a real process and kills its group when the session is hung up."""

    def run(process: Process) -> int:
        child = subprocess.Popen(
            arguments, stdin=process.stdin, stdout=process.stdout, stderr=process.stderr, start_new_session=True
        )
        while (code := child.poll()) is None:
            if process.gone.wait(0.01):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, 9)
                code = child.wait()
                break
        return code if code >= 0 else 128 - code

    return run


@dataclass
class Ticket:
    """What a token stands for."""

    ok: dict[str, Any]
    program: Program | None = None
    #: Answer to "begin" in place of starting.
    error: str = ""
    #: Whether the output stays open after the exit, as a child that the program left behind would keep it.
    leave_open: bool = False


class FakeShim:
    """Listens where the shim of `<state>/s/0123456789abcdef` would."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.directory = state / "s" / NAME
        self.directory.mkdir(parents=True)
        self._tickets: dict[str, Ticket] = {}
        self._listener = seqpacket.listen(str(paths.stream_socket(state, f"{NAME}-")), 0o660)
        self.processes: list[Process] = []
        self.left_open: list[int] = []
        #: Ports that connections were asked for.
        self.connects: list[int] = []
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        #: What every redemption is answered with instead of the ticket.
        self.answer: dict[str, Any] | None = None
        self._start(self._accept)

    def exec(
        self,
        program: Program,
        *,
        kind: str = "exec",
        tty: bool = False,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool | None = None,
        leave_open: bool = False,
    ) -> str:
        """Register a ticket for exec (or attach) and return its token."""
        streams = {"stdin": stdin, "stdout": stdout, "stderr": not tty if stderr is None else stderr}
        return self._add(Ticket({"kind": kind, "tty": tty, **streams, "ports": []}, program, leave_open=leave_open))

    def failing(self, message: str) -> str:
        """Register an exec ticket whose start fails."""
        ok = {"kind": "exec", "tty": False, "stdin": False, "stdout": True, "stderr": True, "ports": []}
        return self._add(Ticket(ok, error=message))

    def port_forward(self, *ports: int) -> str:
        """Register a ticket for port forwarding."""
        return self._add(Ticket({"kind": "port_forward", "ports": list(ports)}))

    def close(self) -> None:
        """Hang up everything and wait for the programs."""
        # shutdown() wakes the thread that is in accept(); close() alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for process in self.processes:
            process.gone.set()
        self.hang_up()
        for fd in self.left_open:
            os.close(fd)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a program of the fake shim did not end"

    def hang_up(self, reason: str = "") -> None:
        """Close all sessions, as a shim does that dies; with a reason, as one that has had enough of its clients."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                if reason:
                    seqpacket.send(connection, {"error": {"code": 8, "message": reason}})
                connection.shutdown(socket.SHUT_RDWR)

    def _add(self, ticket: Ticket) -> str:
        token = f"{NAME}-{secrets.token_hex(16)}"
        self._tickets[token] = ticket
        return token

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        process, master = Process(), -1
        ticket: Ticket | None = None
        with connection:
            while True:
                try:
                    message, _ = seqpacket.receive(connection)
                except OSError:
                    break
                if message is None:
                    break
                if "redeem" in message:
                    ticket = self._tickets.pop(message["redeem"], None)
                    answer = {"ok": ticket.ok} if ticket else {"error": {"code": 5, "message": "unknown ticket"}}
                    seqpacket.send(connection, self.answer or answer)
                elif ticket and "begin" in message:
                    self.processes.append(process)
                    _resize(process, -1, message["begin"])
                    master = self._begin(connection, ticket, process)
                elif "resize" in message:
                    _resize(process, master, message["resize"])
                elif "connect" in message:
                    self._connect(connection, **message["connect"])
            process.gone.set()
        if master >= 0:
            os.close(master)

    def _begin(self, connection: socket.socket, ticket: Ticket, process: Process) -> int:
        """Make the descriptors, start the program; returns the pty's master or -1."""
        if ticket.error:
            seqpacket.send(connection, {"error": {"code": 13, "message": ticket.error}})
            return -1
        master, theirs = -1, dict[str, int]()
        if ticket.ok["tty"] and ticket.ok["kind"] == "exec":
            master, slave = pty.openpty()
            tty.setraw(slave)
            if process.sizes:
                _set_size(master, *process.sizes[-1])
            process.stdin, process.stdout, process.stderr = slave, os.dup(slave), os.dup(slave)
            theirs = {"tty": os.dup(master)}
        else:
            for name in ("stdin", "stdout", "stderr"):
                if ticket.ok[name]:
                    ends = os.pipe()
                    mine, other = ends if name == "stdin" else ends[::-1]
                    setattr(process, name, mine)
                    theirs[name] = other
                else:
                    setattr(process, name, os.open("/dev/null", os.O_RDWR))
        # The client may have hung up already; the program then finds its pipes closed.
        with contextlib.suppress(OSError):
            seqpacket.send(connection, {"started": {"fds": list(theirs)}}, list(theirs.values()))
        for fd in theirs.values():
            os.close(fd)
        self._start(self._run, connection, ticket, process)
        return master

    def _run(self, connection: socket.socket, ticket: Ticket, process: Process) -> None:
        assert ticket.program is not None
        try:
            code = ticket.program(process)
        except OSError:
            code = 141
        if ticket.leave_open:
            self.left_open.append(os.dup(process.stdout))
        for fd in (process.stdin, process.stdout, process.stderr):
            os.close(fd)
        with contextlib.suppress(OSError):
            seqpacket.send(connection, {"exit": {"code": code, "message": ""}})

    def _connect(self, connection: socket.socket, id: int, port: int) -> None:
        self.connects.append(port)
        try:
            made = socket.create_connection(("127.0.0.1", port), timeout=30)
        except OSError as error:
            text = f"connect to 127.0.0.1:{port}: {error.strerror}"
            seqpacket.send(connection, {"failed": {"id": id, "message": text}})
            return
        with made, contextlib.suppress(OSError):
            seqpacket.send(connection, {"connected": {"id": id}}, [made.fileno()])


def _resize(process: Process, master: int, size: dict[str, int]) -> None:
    if not size:
        return
    process.sizes.append((size["width"], size["height"]))
    if master >= 0:
        _set_size(master, size["width"], size["height"])
    process.resized.set()


def _set_size(master: int, width: int, height: int) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
