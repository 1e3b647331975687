"""Bytes to and from a client: a TCP or TLS connection, or a WebSocket whose messages carry another protocol's bytes."""

import asyncio
import contextlib
import socket
from typing import Protocol

from stream_svc import websocket

READ_SIZE = 64 * 1024
#: Bytes waiting in user space for a slow client before writers are stopped.
WRITE_BUFFER = 256 * 1024
_ESTABLISHED = 1


class Wire(Protocol):
    """What a multiplexer stands on."""

    async def read(self) -> bytes:
        """Return what has arrived, waiting for it; b"" at the end."""

    def write(self, data: bytes) -> None:
        """Queue bytes."""

    async def drain(self) -> None:
        """Wait until the client has taken enough that more may be written; ConnectionError if it is gone."""

    async def flush(self) -> None:
        """Wait until nothing is queued any more."""

    def end(self) -> None:
        """Say that nothing more will be written, where the transport can say so."""

    def gone(self) -> bool:
        """Tell, without reading, whether the client has hung up."""

    def abort(self) -> None:
        """Drop the connection without waiting for anything that is still queued."""


class SocketWire:
    """A TCP or TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: bytes = b"") -> None:
        self._reader, self._writer, self._received = reader, writer, received
        writer.transport.set_write_buffer_limits(WRITE_BUFFER)
        _prepare(writer.get_extra_info("socket"))

    async def read(self) -> bytes:
        """Return what has arrived; a connection that was reset counts as ended."""
        if self._received:
            received, self._received = self._received, b""
            return received
        try:
            return await self._reader.read(READ_SIZE)
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        # asyncio warns of every write to a connection that is lost; the reader learns of that by itself.
        if data and not self._writer.transport.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until less than WRITE_BUFFER is queued; lets other tasks run even if that is so already."""
        await self._writer.drain()
        await asyncio.sleep(0)

    async def flush(self) -> None:
        """Wait until the kernel has everything."""
        # Not 0: asyncio's TLS transport would count an empty buffer as full.
        self._writer.transport.set_write_buffer_limits(high=1, low=0)
        await self._writer.drain()

    def end(self) -> None:
        """Send FIN; TLS has no half-close here."""
        if self._writer.can_write_eof():
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    def gone(self) -> bool:
        """Ask the kernel for the TCP state: anything but ESTABLISHED means that the client has closed."""
        if self._writer.transport.is_closing():
            return True
        sock = self._writer.get_extra_info("socket")
        try:
            return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED)
        except OSError:
            return True

    def abort(self) -> None:
        """Close; what is queued is lost."""
        transport = self._writer.transport
        if transport.get_write_buffer_size():
            transport.abort()
        else:
            transport.close()


def _prepare(sock: socket.socket) -> None:
    """Send small frames at once, and have the kernel find out about clients whose machine is gone.

    asyncio sets TCP_NODELAY only on sockets that know their protocol number, which accepted ones do not. A silent
    client is asked after 30 s, and given up after five questions in 75 s.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 5)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class TunnelWire:
    """Carries bytes in the binary messages of a WebSocket (subprotocols `SPDY/3.1+…`)."""

    def __init__(self, inner: Wire) -> None:
        self._inner = inner
        self._ws = websocket.Connection()
        self._ended = False

    async def read(self) -> bytes:
        """Return the payload of what has arrived; a close frame, or nonsense, is the end."""
        while not self._ended:
            data = await self._inner.read()
            if not data:
                break
            payload = self._unpack(data)
            if answers := self._ws.take():
                self._inner.write(answers)
                await self._inner.drain()
            if payload:
                return payload
        return b""

    def _unpack(self, data: bytes) -> bytes:
        payload: list[bytes] = []
        try:
            for event in self._ws.receive_data(data):
                if isinstance(event, websocket.Closed):
                    self._ended = True
                else:
                    payload.append(event.data)
        except websocket.ProtocolError as error:
            self._ws.close(error.code, str(error))
            self._ended = True
        return b"".join(payload)

    def write(self, data: bytes) -> None:
        """Queue one message."""
        if data and self._ws.send(data):
            self._inner.write(self._ws.take())

    async def drain(self) -> None:
        """Wait for the client as the inner wire does."""
        await self._inner.drain()

    async def flush(self) -> None:
        """Wait as the inner wire does."""
        await self._inner.flush()

    def end(self) -> None:
        """Send the close frame."""
        self._ws.close()
        self._inner.write(self._ws.take())

    def gone(self) -> bool:
        """Ask the inner wire."""
        return self._inner.gone()

    def abort(self) -> None:
        """Close at once."""
        self._inner.abort()
