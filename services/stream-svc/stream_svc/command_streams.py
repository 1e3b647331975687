"""The channels of an exec or attach session, gathered from whichever transport the client chose."""

import asyncio
from dataclasses import dataclass

from bulkhead.errors import DeadlineExceeded
from stream_svc.channel import Channel
from stream_svc.shim import Ticket
from stream_svc.spdy_events import Status
from stream_svc.spdy_multiplexer import SpdyMultiplexer
from stream_svc.websocket_multiplexer import WebSocketMultiplexer

#: Seconds a client has to open all streams (k8s.io/cri-streaming, DefaultStreamCreationTimeout).
CREATION_LIMIT = 30.0
_TYPES = ("error", "stdin", "stdout", "stderr", "resize")
#: Channels of a WebSocket, by number.
_CHANNELS = ("stdin", "stdout", "stderr", "error", "resize")


@dataclass(frozen=True)
class CommandStreams:
    """None stands for a stream that the ticket does not give or the client did not open."""

    error: Channel
    stdin: Channel | None = None
    stdout: Channel | None = None
    stderr: Channel | None = None
    resize: Channel | None = None

    def all(self) -> list[Channel]:
        """Return the channels that there are, the error channel last."""
        channels = [self.stdin, self.stdout, self.stderr, self.resize]
        return [*(channel for channel in channels if channel is not None), self.error]


def expected(ticket: Ticket, version: int) -> set[str]:
    """Return the stream types that a client of that protocol version opens for the ticket.

    A terminal has no stderr of its own; resize came with version 3.
    """
    given = {"stdin": ticket.stdin, "stdout": ticket.stdout, "stderr": ticket.stderr and not ticket.tty}
    return {"error", *(name for name, wanted in given.items() if wanted)} | (
        {"resize"} if ticket.tty and version >= 3 else set()
    )


async def gather(multiplexer: SpdyMultiplexer, ticket: Ticket, version: int) -> CommandStreams:
    """Wait until the client has opened all the expected streams.

    DeadlineExceeded after CREATION_LIMIT seconds, also told on the error stream if there is one.
    """
    wanted, found = expected(ticket, version), dict[str, Channel]()
    try:
        async with asyncio.timeout(CREATION_LIMIT):
            while not wanted <= set(found):
                await _take(multiplexer, wanted, found)
    except TimeoutError as error:
        missing = ", ".join(sorted(wanted - set(found)))
        message = f"timed out waiting for the client to create streams: {missing}"
        if "error" in found:
            await found["error"].write(message.encode())
        raise DeadlineExceeded(message) from error
    return CommandStreams(**{name: channel for name, channel in found.items() if name in wanted})


async def _take(multiplexer: SpdyMultiplexer, wanted: set[str], found: dict[str, Channel]) -> None:
    channel = await multiplexer.offered()
    name = channel.headers.get("streamtype", "")
    if name not in _TYPES or name in found:
        multiplexer.refuse(channel, Status.PROTOCOL_ERROR)
        return
    found[name] = channel
    multiplexer.accept(channel)
    if name not in wanted:
        channel.discard()


async def refuse_further(multiplexer: SpdyMultiplexer) -> None:
    """Refuse every stream that the client opens after those that were expected; never returns."""
    while True:
        multiplexer.refuse(await multiplexer.offered(), Status.REFUSED_STREAM)


async def from_websocket(multiplexer: WebSocketMultiplexer, ticket: Ticket) -> CommandStreams:
    """Name a WebSocket's channels and tell the client, by an empty message, that the connection stands.

    That message goes to the lowest channel the client reads, as the kubelet's library does.
    """
    given = {"error": True, "resize": ticket.tty, "stdin": ticket.stdin, "stdout": ticket.stdout}
    given["stderr"] = ticket.stderr and not ticket.tty
    found: dict[str, Channel] = {}
    for name, channel in zip(_CHANNELS, multiplexer.channels, strict=True):
        if given[name]:
            found[name] = channel
        else:
            channel.discard()
    first = next(found[name] for name in ("stdout", "stderr", "error") if name in found)
    await first.write(b"")
    return CommandStreams(**found)


#: Channels a WebSocket for exec and attach has.
CHANNEL_COUNT = len(_CHANNELS)
