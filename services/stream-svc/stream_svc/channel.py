"""One stream of bytes inside a client's connection, with room for what has arrived and was not read yet."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Protocol


class Carrier(Protocol):
    """What takes a channel's bytes to the client."""

    async def send(self, channel: "Channel", data: bytes) -> None:
        """Send bytes, waiting while the client is slow."""

    def finish(self, channel: "Channel") -> None:
        """Send the end of our half."""

    def reset(self, channel: "Channel") -> None:
        """Give the channel up."""


class Channel:
    """Bytes in both directions; the multiplexer feeds what arrives, the session reads it."""

    def __init__(self, carrier: Carrier, ident: int, headers: Mapping[str, str]) -> None:
        self._carrier = carrier
        self.ident = ident
        self.headers = headers
        #: Set when neither side can use the channel any more.
        self.is_reset = asyncio.Event()
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._discarding = False
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()

    # ---- for the session

    async def read(self) -> bytes:
        """Return what the client sent, waiting for it; b"" once it has sent everything."""
        while not self._pieces:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces.popleft()
        self._size -= len(piece)
        self._taken.set()
        return piece

    async def write(self, data: bytes) -> None:
        """Send bytes to the client, waiting while it is slow."""
        await self._carrier.send(self, data)

    def finish(self) -> None:
        """Tell the client that nothing more comes on this channel."""
        self._carrier.finish(self)

    def reset(self) -> None:
        """Give the channel up in both directions."""
        self._carrier.reset(self)
        self.lose()

    def discard(self) -> None:
        """Throw away what arrived and what will arrive: nobody reads this channel any more."""
        self._discarding = True
        self._pieces.clear()
        self._size = 0
        self._taken.set()

    # ---- for the multiplexer

    @property
    def size(self) -> int:
        """Received bytes that wait to be read."""
        return self._size

    async def shrink(self, limit: int) -> None:
        """Wait until the session has left no more than `limit` bytes unread."""
        while self._size > limit:
            self._taken.clear()
            await self._taken.wait()

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        if data and not self._discarding and not self._ended:
            self._pieces.append(data)
            self._size += len(data)
            self._changed.set()

    def feed_end(self) -> None:
        """Note that the client sends nothing more."""
        self._ended = True
        self._changed.set()

    def lose(self) -> None:
        """Note that the channel is gone in both directions."""
        self.feed_end()
        self.is_reset.set()
