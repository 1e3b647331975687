"""A SPDY connection whose streams are channels, each offered to the session, which accepts or refuses it."""

import asyncio
import contextlib
from collections.abc import Collection, Iterator

from stream_svc import spdy
from stream_svc.channel import Channel
from stream_svc.multiplexer import Multiplexer
from stream_svc.spdy_events import Data, Event, GoAway, Status, StreamEnded, StreamOpened, StreamReset
from stream_svc.wire import Wire

#: Seconds that a client has to close by itself before it is sent GOAWAY.
COURTESY = 1.0


class SpdyMultiplexer(Multiplexer):
    """Channels as the client opens them."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self._spdy = spdy.Connection()
        self._open: dict[int, Channel] = {}
        self._offered: asyncio.Queue[Channel] = asyncio.Queue()
        self._going = False

    async def offered(self) -> Channel:
        """Wait for the next stream that the client opens; answer it with accept() or refuse()."""
        return await self._offered.get()

    def accept(self, channel: Channel) -> None:
        """Let the client use the stream."""
        self._spdy.reply(channel.ident)
        self._send_pending()

    def refuse(self, channel: Channel, status: Status = Status.CANCEL) -> None:
        """Reset a stream that makes no sense here."""
        self._spdy.reset(channel.ident, status)
        self._open.pop(channel.ident, None)
        channel.lose()
        self._send_pending()

    async def send(self, channel: Channel, data: bytes) -> None:
        """Send bytes, waiting while the client is slow; dropped if it has given the stream up."""
        if self._spdy.send_data(channel.ident, data):
            await self._write(len(data))

    def finish(self, channel: Channel) -> None:
        """Send FIN."""
        self._spdy.send_data(channel.ident, b"", fin=True)
        self._forget_if_done(channel.ident)
        self._send_pending()

    def reset(self, channel: Channel) -> None:
        """Send RST_STREAM."""
        self.refuse(channel)

    def _dispatch(self, data: bytes) -> Iterator[Channel]:
        for event in self._spdy.receive_data(data):
            channel = self._apply(event)
            if channel is not None:
                yield channel

    def _apply(self, event: Event) -> Channel | None:
        if isinstance(event, StreamOpened):
            channel = self._open[event.stream] = Channel(self, event.stream, event.headers)
            self._offered.put_nowait(channel)
            return channel
        if isinstance(event, GoAway):
            self._going = True
            return None
        known = self._open.get(event.stream)
        if known is None:
            return None
        if isinstance(event, Data):
            self.received += len(event.data)
            known.feed(event.data)
        elif isinstance(event, StreamEnded):
            known.feed_end()
            self._forget_if_done(event.stream)
        elif isinstance(event, StreamReset):
            del self._open[event.stream]
            known.lose()
        return known

    def _forget_if_done(self, stream: int) -> None:
        if not self._spdy.knows(stream):
            self._open.pop(stream, None)

    def _pending(self) -> bytes:
        return self._spdy.take()

    def _channels(self) -> Collection[Channel]:
        return self._open.values()

    def _over(self) -> bool:
        # GOAWAY announces the end; streams that are still open live on.
        return self._going and self._spdy.idle()

    async def _goodbye(self) -> None:
        # Go's client closes by itself when its streams have ended; an old one loses data if GOAWAY comes at once.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closed.wait(), COURTESY)
        self._spdy.goaway()
        self._send_pending()
        self._wire.end()
