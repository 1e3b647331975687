"""A WebSocket connection whose messages carry a fixed set of channels."""

from collections.abc import Collection, Iterator

from stream_svc import websocket
from stream_svc.channel import Channel
from stream_svc.multiplexer import Multiplexer
from stream_svc.websocket import ChannelData, Channels, Closed
from stream_svc.wire import Wire


class WebSocketMultiplexer(Multiplexer):
    """Channels 0 to `count` - 1, all open from the start."""

    def __init__(self, wire: Wire, count: int, codec: Channels) -> None:
        super().__init__(wire)
        self._ws = websocket.Connection()
        self._codec = codec
        self._closing = False
        self.channels = [Channel(self, ident, {}) for ident in range(count)]
        #: The close code for the client's goodbye.
        self.code = websocket.NORMAL

    async def send(self, channel: Channel, data: bytes) -> None:
        """Send one message, waiting while the client is slow."""
        if self._ws.send(self._codec.encode(channel.ident, data), text=self._codec.base64):
            await self._write(len(data))

    def finish(self, channel: Channel) -> None:
        """Do nothing: a server has no way to end one channel, clients learn it from the close frame."""

    def reset(self, channel: Channel) -> None:
        """Do nothing, for the same reason."""

    def _dispatch(self, data: bytes) -> Iterator[Channel]:
        for event in self._ws.receive_data(data):
            if isinstance(event, Closed):
                self._closing = True
                return
            for said in self._codec.decode(event):
                # Channels that do not exist are dropped, as the kubelet's library does.
                if said.channel < len(self.channels):
                    yield self._apply(self.channels[said.channel], said)

    def _apply(self, channel: Channel, said: websocket.ChannelData | websocket.ChannelEnded) -> Channel:
        if isinstance(said, ChannelData):
            self.received += len(said.data)
            channel.feed(said.data)
        else:
            channel.feed_end()
        return channel

    def _pending(self) -> bytes:
        return self._ws.take()

    def _channels(self) -> Collection[Channel]:
        return self.channels

    def _over(self) -> bool:
        return self._closing

    def _complain(self, error: Exception) -> None:
        code = error.code if isinstance(error, websocket.ProtocolError) else websocket.PROTOCOL_ERROR
        self._ws.close(code, str(error))
        self._send_pending()

    async def _goodbye(self) -> None:
        self._ws.close(self.code)
        self._send_pending()
