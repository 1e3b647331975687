"""What SPDY and WebSocket connections have in common: the loop that reads, the polite end, the byte counts."""

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator

from stream_svc import spdy_events, websocket
from stream_svc.channel import Channel
from stream_svc.wire import Wire

logger = logging.getLogger(__name__)

#: Received bytes that may wait in one channel, and in all of them, before the connection is no longer read: neither
#: SPDY as Kubernetes speaks it nor its WebSocket channels can hold back one stream alone.
CHANNEL_ROOM = 256 * 1024
TOTAL_ROOM = 4 * 1024 * 1024
#: Seconds between two looks at whether a client that is not being read from has hung up.
LOOK = 2.0
#: Seconds that what is queued may take to reach a client at the end, and that its own close is waited for.
FLUSH_LIMIT = 30.0
LINGER = 5.0


class Multiplexer(ABC):
    """Owns a wire; run() must run in a task of its own as long as the connection lives."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        #: Set when the client has hung up or broken the protocol.
        self.closed = asyncio.Event()
        #: time.monotonic() of the last bytes in either direction.
        self.activity = time.monotonic()
        #: Bytes of payload from and to the client.
        self.received = self.sent = 0

    async def run(self) -> None:
        """Read until the client hangs up; then every channel is lost and `closed` is set."""
        try:
            while data := await self._wire.read():
                self.activity = time.monotonic()
                await self._take(data)
                if self._over():
                    break
        except (spdy_events.ProtocolError, websocket.ProtocolError) as error:
            logger.info("client broke the protocol: %s", error)
            self._complain(error)
        except ConnectionError:
            pass  # the client is gone, which is all that there is to know
        finally:
            self.closed.set()
            for channel in list(self._channels()):
                channel.lose()

    async def _take(self, data: bytes) -> None:
        for channel in self._dispatch(data):
            limit = min(CHANNEL_ROOM, TOTAL_ROOM // max(len(self._channels()), 1))
            while channel.size > limit:
                await self._room(channel, limit)
        if self._send_pending():
            # Only answers (pongs, resets) wait here, so that a client that reads none cannot pile them up.
            await self._wire.drain()

    async def _room(self, channel: Channel, limit: int) -> None:
        """Wait for room, looking now and then for the hang-up that an unread connection would hide."""
        try:
            async with asyncio.timeout(LOOK):
                await channel.shrink(limit)
        except TimeoutError:
            if self._wire.gone():
                raise ConnectionResetError("the client hung up") from None

    async def close(self) -> None:
        """Flush, say goodbye, wait a little for the client to close, then drop the connection.

        The client must close first: closing a socket with unread bytes resets it, and the reset would overtake the
        last of the output.
        """
        for channel in list(self._channels()):
            channel.discard()
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(self._wire.flush(), FLUSH_LIMIT)
                await self._goodbye()
                await asyncio.wait_for(self.closed.wait(), LINGER)
        finally:
            self._wire.abort()

    def _send_pending(self) -> bool:
        """Queue what the protocol has produced; whether there was anything."""
        data = self._pending()
        self._wire.write(data)
        return bool(data)

    async def _write(self, size: int) -> None:
        """Send what the protocol has produced for `size` bytes of payload, waiting while the client is slow."""
        if self.closed.is_set():
            raise ConnectionResetError("the client hung up")
        self._send_pending()
        await self._wire.drain()
        self.activity = time.monotonic()
        self.sent += size

    @abstractmethod
    def _dispatch(self, data: bytes) -> Iterator[Channel]:
        """Parse received bytes and feed the channels; yields each channel that was fed."""

    @abstractmethod
    def _pending(self) -> bytes:
        """Return the bytes that the protocol wants sent."""

    @abstractmethod
    def _channels(self) -> Collection[Channel]:
        """Return the channels that are open."""

    @abstractmethod
    async def _goodbye(self) -> None:
        """Announce the end of the connection."""

    def _over(self) -> bool:
        """Whether the client has said that it is done."""
        return False

    def _complain(self, error: Exception) -> None:
        """Tell the client what it did wrong, where the protocol has words for it."""
        del error
