"""A port-forward session: pairs of channels (data, error), each pair one TCP connection inside the pod."""

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from bulkhead.errors import BulkheadError
from stream_svc.channel import Channel
from stream_svc.descriptors import Sink, Source
from stream_svc.shim import Session
from stream_svc.spdy_events import Status
from stream_svc.spdy_multiplexer import SpdyMultiplexer
from stream_svc.websocket_multiplexer import WebSocketMultiplexer

logger = logging.getLogger(__name__)

#: Seconds between the two streams of a pair.
PAIR_LIMIT = 30.0
#: Connections of one session, those included that wait for their second stream or whose streams were reset meanwhile.
CONNECTION_LIMIT = 1024


@dataclass
class Pair:
    """The two channels of one forwarded connection."""

    port: int
    data: Channel | None = None
    error: Channel | None = None
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, kind: str, channel: Channel) -> bool:
        """Put a channel in its place; False if the place is taken."""
        if getattr(self, kind) is not None:
            return False
        setattr(self, kind, channel)
        if self.data is not None and self.error is not None:
            self.complete.set()
        return True


class PortForward:
    """One session; any number of connections."""

    def __init__(self, shim: Session) -> None:
        self._shim = shim
        self._pairs: dict[str, Pair] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def over_spdy(self, multiplexer: SpdyMultiplexer) -> None:
        """Serve the pairs that the client opens; never returns, the client's hang-up ends it."""
        try:
            while True:
                self._take(multiplexer, await multiplexer.offered())
        finally:
            await self._stop()

    async def over_websocket(self, multiplexer: WebSocketMultiplexer) -> None:
        """Serve the ports of the ticket, channels 2n and 2n+1 each; returns when all connections have ended.

        The first message of each channel is its port as 16 bits, little-endian (k8s.io/cri-streaming).
        """
        channels = multiplexer.channels
        try:
            for number, port in enumerate(self._shim.ticket.ports):
                data, error = channels[2 * number : 2 * number + 2]
                for channel in (data, error):
                    await channel.write(struct.pack("<H", port))
                error.discard()
                self._run(self._forward(Pair(port, data, error), half_close=False))
            await asyncio.gather(*self._tasks)
        finally:
            await self._stop()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, multiplexer: SpdyMultiplexer, channel: Channel) -> None:
        """Accept a stream and put it into its pair; refuse one without a usable port, type or place."""
        port, kind = _port(channel.headers.get("port", "")), channel.headers.get("streamtype")
        if port is None or kind not in ("data", "error"):
            multiplexer.refuse(channel, Status.PROTOCOL_ERROR)
            return
        request = _request_id(channel, kind)
        pair = self._pairs.get(request)
        if pair is None and len(self._tasks) >= CONNECTION_LIMIT:
            multiplexer.refuse(channel, Status.REFUSED_STREAM)
            return
        if pair is None:
            pair = self._pairs[request] = Pair(port)
            self._run(self._serve(request, pair))
        if pair.port != port or not pair.add(kind, channel):
            multiplexer.refuse(channel, Status.PROTOCOL_ERROR)
            return
        multiplexer.accept(channel)

    async def _serve(self, request: str, pair: Pair) -> None:
        try:
            async with asyncio.timeout(PAIR_LIMIT):
                await pair.complete.wait()
        except TimeoutError:
            await self._fail(pair, f"request {request}: timed out waiting for streams")
            return
        finally:
            # From here on the id may be used again.
            del self._pairs[request]
        await self._forward(pair, half_close=True)

    async def _fail(self, pair: Pair, message: str) -> None:
        logger.info("port forward: %s", message)
        if pair.error is not None:
            await pair.error.write(message.encode())
            pair.error.finish()
        if pair.data is not None:
            pair.data.reset()

    async def _forward(self, pair: Pair, *, half_close: bool) -> None:
        try:
            fd = await self._shim.connect(pair.port)
        except BulkheadError as error:
            await self._fail(pair, f"error forwarding port {pair.port} to pod: {error}")
            return
        with contextlib.closing(Source(fd)) as source, contextlib.closing(Sink(os.dup(fd))) as sink:
            await _exchange(pair, source, sink, half_close=half_close)


async def _exchange(pair: Pair, source: Source, sink: Sink, *, half_close: bool) -> None:
    """Copy both ways until both have ended or the client has given the connection up.

    Without half-close (WebSocket) the pod's end is the end of both.
    """
    data, error = pair.data, pair.error
    assert data is not None
    assert error is not None
    up, down = asyncio.create_task(_up(data, sink)), asyncio.create_task(_down(source, data, error))
    lost = asyncio.create_task(data.is_reset.wait())
    try:
        while not lost.done() and not (down.done() and (up.done() or not half_close)):
            await asyncio.wait({up, down, lost} - {t for t in (up, down) if t.done()}, return_when="FIRST_COMPLETED")
    finally:
        for task in (up, down, lost):
            task.cancel()
        await asyncio.gather(up, down, lost, return_exceptions=True)
        data.discard()
        data.finish()
        error.finish()


async def _up(data: Channel, sink: Sink) -> None:
    """Copy from the client to the pod; the client's end becomes the socket's."""
    try:
        while piece := await data.read():
            await sink.write(piece)
        sink.shut()
    except OSError as error:
        logger.debug("the pod takes no more: %s", error)
        data.discard()


async def _down(source: Source, data: Channel, error: Channel) -> None:
    """Copy from the pod to the client.

    The pod's end closes the error stream too: nothing can fail any more that the client does not see by itself, and
    client-go waits for that before it lets its own connection go.
    """
    try:
        while piece := await source.read():
            await data.write(piece)
    finally:
        data.finish()
        error.finish()


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 65536 else None


def _request_id(channel: Channel, kind: str) -> str:
    """Return the pair's id; clients without request ids open error and data stream one after the other."""
    given = channel.headers.get("requestid")
    return given or f"stream {channel.ident if kind == 'error' else channel.ident - 2}"
