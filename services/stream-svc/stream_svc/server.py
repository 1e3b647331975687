"""The listening side: connections, the one request each may make, limits, and the end of them all.

Why no ASGI server stands here, though the project ships uvicorn and fastapi: an ASGI application never gets the
connection of a request that upgrades to SPDY, which is what kubelets, API servers and crictl ask for; and ASGI hands
out WebSocket messages whole, where a session must be able to stop reading a client whose process takes no input. One
loop with h11 for the head, wsproto for WebSocket frames and our own SPDY serves both transports alike, without the
25 MB that importing fastapi costs. Metrics and health have the loopback face of bulkhead.metrics; sessions are listed
by the Streams service.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

from bulkhead import log
from bulkhead.errors import BulkheadError, NotFound, ResourceExhausted, Unavailable
from bulkhead.metrics import ERRORS
from stream_svc import shim
from stream_svc.head import Head
from stream_svc.session import Limits, Session
from stream_svc.sessions import REFUSED, Table
from stream_svc.upgrade import Refused, Upgrade, plan
from stream_svc.wire import SocketWire

logger = logging.getLogger(__name__)

#: Sessions open at a time; each takes up to six descriptors. Connections without a ticket, which anybody on the network
#: may make, do not count: they end by themselves (HEAD_TIMEOUT) and are dropped beyond a number of their own.
SESSION_LIMIT, CONNECTION_LIMIT = 1024, 4096
#: Seconds for a TLS handshake, and for the request's head.
HEAD_TIMEOUT = 10.0
#: Seconds that sessions get to end when the service stops.
STOP_LIMIT = 3.0
#: Seconds that a refused client gets to read why.
_GOODBYE = 2.0
#: Bytes asyncio reads ahead of us.
_READ_AHEAD = 64 * 1024


class Server:
    """Serves streams on listening sockets; start() and stop() belong to one event loop."""

    def __init__(self, state: Path, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self._state, self._limits, self._tls = state, limits, tls
        self._stop = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.table = Table()

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Accept connections."""
        handshake, shutdown = (HEAD_TIMEOUT, 2.0) if self._tls else (None, None)
        for listener in listeners:
            server = await asyncio.start_server(
                self._accept,
                sock=listener,
                limit=_READ_AHEAD,
                ssl=self._tls,
                ssl_handshake_timeout=handshake,
                ssl_shutdown_timeout=shutdown,
            )
            self._servers.append(server)

    def not_ready(self) -> list[str]:
        """Return why no session can be opened now; an empty list means that one can."""
        if self._stop.is_set() or not self._servers:
            return ["not listening for streams"]
        if len(self.table.open) >= SESSION_LIMIT:
            return [f"{SESSION_LIMIT} sessions are open, the most there may be"]
        return []

    async def stop(self) -> None:
        """Accept no more, tell every session to end, and drop those that have not after STOP_LIMIT seconds."""
        for server in self._servers:
            server.close()
        self._stop.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_LIMIT)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        log.correlation.set(log.new_correlation())
        try:
            if len(self._tasks) <= CONNECTION_LIMIT:
                await self._serve(reader, writer)
        except (EOFError, ConnectionError, TimeoutError):
            pass  # a client that goes away before it has a session is nobody's business
        except Exception:
            ERRORS.labels("stream").inc()
            logger.exception("connection failed")
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = Head(reader, writer)
        try:
            async with asyncio.timeout(HEAD_TIMEOUT):
                request = await head.read()
            upgrade = plan(request)
            head.settle()
            if len(self.table.open) >= SESSION_LIMIT:
                raise Refused(503, f"{SESSION_LIMIT} sessions are open already", [(b"Retry-After", b"5")])
            ticket = await self._redeem(upgrade)
        except Refused as refused:
            REFUSED.labels(str(refused.status)).inc()
            logger.info("refused with %d: %s", refused.status, refused)
            head.refuse(refused)
            await _say_goodbye(reader, writer)
            return
        try:
            wire = SocketWire(reader, writer, head.switch(upgrade.headers))
            await self._run(Session(upgrade, ticket, wire, self._limits), upgrade, _peer(writer))
        finally:
            ticket.close()

    async def _run(self, session: Session, upgrade: Upgrade, peer: str) -> None:
        shim_name = upgrade.token.partition("-")[0]
        entry = self.table.add(upgrade.kind, upgrade.transport, upgrade.protocol, shim_name, peer)
        entry.count = session.count
        logger.info("%s session %d opened", entry.kind, entry.number, extra={"peer": peer, "shim": shim_name})
        outcome = "error"
        try:
            outcome = await session.run(self._stop)
        finally:
            self.table.remove(entry, outcome)
            received, sent = session.count()
            figures = {"outcome": outcome, "seconds": round(time.monotonic() - entry.began, 3)}
            logger.info(
                "%s session %d ended", entry.kind, entry.number, extra={**figures, "received": received, "sent": sent}
            )

    async def _redeem(self, upgrade: Upgrade) -> shim.Session:
        """Return the shim's session for the ticket; Refused with the HTTP answer otherwise."""
        try:
            session = await shim.Session.redeem(self._state, upgrade.token)
        except NotFound as error:
            raise Refused(404, f"not found: {error}") from error
        except (Unavailable, ResourceExhausted) as error:
            raise Refused(503, str(error), [(b"Retry-After", b"1")]) from error
        except BulkheadError as error:
            logger.warning("ticket could not be redeemed: %s", error)
            raise Refused(500, str(error)) from error
        ports = session.ticket.ports
        if session.ticket.kind != upgrade.kind:
            session.close()
            raise Refused(404, "not found: the ticket is for something else")
        if upgrade.transport == "websocket" and upgrade.kind == "port_forward" and not 0 < len(ports) <= 127:
            session.close()
            raise Refused(400, f"{len(ports)} ports in the request, a WebSocket carries 1 to 127")
        return session


async def _say_goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the client read the answer: closing with unread bytes would reset the connection before it has."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GOODBYE):
            await writer.drain()
            # TLS has no half-close: its client goes by the Content-Length.
            if writer.can_write_eof():
                writer.write_eof()
                while await reader.read(_READ_AHEAD):
                    pass


def _peer(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
