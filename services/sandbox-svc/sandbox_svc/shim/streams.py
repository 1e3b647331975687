"""The stream socket: stream-svc redeems a ticket and is given the ends of pipes, a terminal, or connections.

One connection is one session and its control socket. Its hang-up kills what was exec'd, or detaches; descriptors that
were passed out live on with whoever holds them.
"""

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from bulkhead import seqpacket
from bulkhead.errors import BulkheadError, DeadlineExceeded, FailedPrecondition, InvalidArgument
from bulkhead.proto.shim_pb2 import AddTicketRequest
from sandbox_svc.shim import forward
from sandbox_svc.shim.attach import attach
from sandbox_svc.shim.host import Host
from sandbox_svc.shim.loop import READ, Loop
from sandbox_svc.shim.pipes import Door
from sandbox_svc.shim.sessions import exec_process
from sandbox_svc.shim.tickets import Tickets

logger = logging.getLogger(__name__)

#: Seconds from the connection to its `redeem`, and from there to its `begin`: stream-svc gives its clients 30 to open
#: their streams in between, and is the one to tell them that they were slow.
PATIENCE, BEGIN_PATIENCE = 30.0, 35.0
#: Sessions at once, half-open ones included.
LIMIT = 1000


class StreamServer:
    """Has the sessions."""

    def __init__(self, loop: Loop, host: Host, tickets: Tickets) -> None:
        self.loop, self.host, self.tickets = loop, host, tickets
        self.sessions: set[Session] = set()
        self._door: Door | None = None

    def listen(self, listener: socket.socket) -> None:
        """Take sessions from a listening socket."""
        self._door = Door(self.loop, listener, self._connected)

    def _connected(self, sock: socket.socket) -> None:
        if len(self.sessions) >= LIMIT:
            sock.close()
        else:
            self.sessions.add(Session(self, sock))


class Session:
    """One connection."""

    __slots__ = ("_fd", "_on_close", "_on_resize", "_patience", "_server", "_socket", "_ticket", "begun", "size")

    def __init__(self, server: StreamServer, sock: socket.socket) -> None:
        self._server, self._socket, self._fd = server, sock, sock.fileno()
        self._ticket: AddTicketRequest | None = None
        self._on_close: list[Callable[[], object]] = []
        self._on_resize: Callable[[int, int], object] | None = None
        self.begun = False
        #: The terminal's last known size: width and height in characters.
        self.size: tuple[int, int] | None = None
        self._patience = server.loop.later(PATIENCE, self._impatient)
        server.loop.watch(self._fd, READ, self._ready)

    @property
    def loop(self) -> Loop:
        """The shim's loop."""
        return self._server.loop

    @property
    def host(self) -> Host:
        """Who has the containers."""
        return self._server.host

    @property
    def closed(self) -> bool:
        """Whether the client has hung up or was hung up on."""
        return self not in self._server.sessions

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call when the session ends."""
        self._on_close.append(callback)

    def on_resize(self, callback: Callable[[int, int], object]) -> None:
        """Call with every size from now on, the last one known included."""
        self._on_resize = callback
        if self.size is not None:
            callback(*self.size)

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send a message; the descriptors are closed here in any case. A client that does not read is hung up on."""
        try:
            if not self.closed:
                seqpacket.send(self._socket, message, fds)
        except OSError:
            self.close()
        finally:
            for fd in fds:
                os.close(fd)

    def fail(self, error: BulkheadError) -> None:
        """Say why it ends, and end."""
        self.send({"error": {"code": error.code, "message": str(error)}})
        self.close()

    def close(self) -> None:
        """Hang up; a second close does nothing."""
        if self.closed:
            return
        self._server.sessions.discard(self)
        self._patience.cancel()
        self.loop.unwatch(self._fd)
        self._socket.close()
        for callback in self._on_close:
            callback()
        self._on_close.clear()

    def _impatient(self) -> None:
        self.fail(DeadlineExceeded("the session did not begin in time"))

    def _ready(self, _: int) -> None:
        try:
            message, fds = seqpacket.receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        except InvalidArgument as error:
            self.fail(error)
            return
        for fd in fds:
            os.close(fd)  # nothing is taken from a client but words
        if message is None:
            self.close()
            return
        try:
            self._take(message)
        except BulkheadError as error:
            self.fail(error)

    def _take(self, message: dict[str, Any]) -> None:
        if "redeem" in message:
            self._redeem(message["redeem"])
        elif self._ticket is None:
            raise FailedPrecondition("a session starts with redeem")
        elif "begin" in message:
            self._begin(message["begin"])
        elif "resize" in message:
            self._resize(message["resize"])
        elif "connect" in message and self._ticket.WhichOneof("what") == "port_forward":
            self._connect(message["connect"])
        else:
            raise InvalidArgument(f"message {sorted(message)} has no place in this session")

    def _redeem(self, token: object) -> None:
        if self._ticket is not None:
            raise FailedPrecondition("a session redeems one ticket")
        self._ticket = ticket = self._server.tickets.redeem(token)
        kind = ticket.WhichOneof("what")
        answer: dict[str, Any] = {"kind": kind}
        self._patience.cancel()
        if kind == "port_forward":
            answer["ports"] = list(ticket.port_forward.ports)
        else:
            self._patience = self.loop.later(BEGIN_PATIENCE, self._impatient)
            what = ticket.exec if kind == "exec" else ticket.attach
            answer |= {"tty": what.tty, "stdin": what.stdin, "stdout": what.stdout, "stderr": what.stderr}
        self.send({"ok": answer})

    def _begin(self, body: object) -> None:
        assert self._ticket is not None
        kind = self._ticket.WhichOneof("what")
        if self.begun or kind == "port_forward":
            raise FailedPrecondition("nothing is there to begin")
        self.begun = True
        self._patience.cancel()
        if isinstance(body, dict) and "width" in body:
            self._resize(body)
        step = exec_process(self, self._ticket.exec) if kind == "exec" else attach(self, self._ticket.attach)
        self.loop.spawn(step).then(lambda future: self._over(future.result))

    def _over(self, result: Callable[[], object]) -> None:
        try:
            result()
        except BulkheadError as error:
            self.fail(error)
        except Exception as error:
            logger.exception("a session failed")
            self.send({"error": {"code": 13, "message": f"{type(error).__name__}: {error}"}})
            self.close()

    def _resize(self, body: object) -> None:
        if not isinstance(body, dict):
            raise InvalidArgument("resize takes width and height")
        size = (_number(body, "width", 65535), _number(body, "height", 65535))
        self.size = size
        if self._on_resize is not None:
            self._on_resize(*size)

    def _connect(self, body: object) -> None:
        assert self._ticket is not None
        ticket = self._ticket.port_forward
        if not isinstance(body, dict):
            raise InvalidArgument("connect takes id and port")
        ident, port = _number(body, "id", 2**53), _number(body, "port", 65535)
        if ticket.ports and port not in ticket.ports:
            self.send({"failed": {"id": ident, "message": f"port {port} is not among those asked for"}})
            return
        self.loop.detach(self._forward(ticket.netns, ident, port))

    async def _forward(self, netns: str, ident: int, port: int) -> None:
        try:
            sock = await forward.connect(self.loop, netns, port)
        except BulkheadError as error:
            self.send({"failed": {"id": ident, "message": str(error)}})
        else:
            self.send({"connected": {"id": ident}}, (sock.detach(),))


def _number(body: dict[str, Any], key: str, limit: int) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise InvalidArgument(f"{key} {value!r} is not a number from 0 to {limit}")
    return value
