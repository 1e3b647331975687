"""WebSocket (RFC 6455) without I/O, and the channels that Kubernetes puts into its messages.

The framing is wsproto's: pure Python, sans-IO, built on the h11 that uvicorn brings anyway; a frame's bytes come out as
they arrive, so a message of any length costs no memory. Channels: the first byte of a binary message is its channel; in
the base64 protocols it is the channel's digit and the rest is base64; with v5 a message of the two bytes 255 and n says
that the client will send nothing more on channel n (k8s.io/streaming, wsstream).
"""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field

from wsproto.connection import Connection as _Wsproto
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

#: The channel of v5 that closes others.
CLOSE_CHANNEL = 255
#: A message that must be complete before it means anything (base64, close signal) may have this many bytes.
WHOLE_LIMIT = 1024 * 1024
NORMAL, GOING_AWAY, PROTOCOL_ERROR, TOO_BIG = 1000, 1001, 1002, 1009


class ProtocolError(Exception):
    """The peer broke the protocol; `code` is the WebSocket close code that says how."""

    def __init__(self, message: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Piece:
    """Some bytes of a message, and whether they end it."""

    data: bytes
    last: bool


@dataclass(frozen=True)
class Closed:
    """The peer sent its close frame; nothing follows."""

    code: int


@dataclass
class Connection:
    """One end of an established WebSocket. Send what take() returns after every call."""

    client: bool = False
    _ws: _Wsproto = field(init=False)
    _out: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start in the open state: the handshake was HTTP's business."""
        self._ws = _Wsproto(ConnectionType.CLIENT if self.client else ConnectionType.SERVER)

    def take(self) -> bytes:
        """Return the bytes to send and forget them."""
        out, self._out = b"".join(self._out), []
        return out

    def send(self, data: bytes, *, text: bool = False) -> bool:
        """Send one message; False if the connection is closing."""
        if self._ws.state is not ConnectionState.OPEN:
            return False
        self._out.append(self._ws.send(TextMessage(data.decode("ascii")) if text else BytesMessage(data)))
        return True

    def ping(self, payload: bytes = b"") -> None:
        """Ask the peer for a sign of life."""
        self._out.append(self._ws.send(Ping(payload)))

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Send the close frame, once."""
        if self._ws.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            self._out.append(self._ws.send(CloseConnection(code, reason[:100])))

    def receive_data(self, data: bytes) -> Iterator[Piece | Closed]:
        """Take received bytes and return what they bring; pings are answered. Raises ProtocolError."""
        if self._ws.state not in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            return
        self._ws.receive_data(data)
        before = self._ws.state
        for event in self._ws.events():
            if isinstance(event, TextMessage | BytesMessage):
                raw = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                yield Piece(raw, event.message_finished)
            elif isinstance(event, Ping):
                self._answer(event)
            elif isinstance(event, CloseConnection):
                if self._ws.state is before:
                    # wsproto reports what it cannot parse as a close that changes no state.
                    raise ProtocolError(event.reason or "unreadable frame", int(event.code))
                self.close(NORMAL)
                yield Closed(int(event.code))
                return

    def _answer(self, ping: Ping) -> None:
        try:
            self._out.append(self._ws.send(ping.response()))
        except LocalProtocolError:
            return  # we are closing: no more frames but the close


@dataclass(frozen=True)
class ChannelData:
    """Bytes for a channel."""

    channel: int
    data: bytes


@dataclass(frozen=True)
class ChannelEnded:
    """The client sends nothing more on this channel (v5)."""

    channel: int


@dataclass
class Channels:
    """Puts channels into messages and takes them out again."""

    base64: bool = False
    close_signal: bool = False
    #: The channel of the message being received; None between messages.
    _channel: int | None = None
    _whole: bytearray = field(default_factory=bytearray)

    def encode(self, channel: int, data: bytes) -> bytes:
        """Return the message that carries these bytes."""
        if self.base64:
            return bytes([ord("0") + channel]) + base64.b64encode(data)
        return bytes([channel]) + data

    def decode(self, piece: Piece) -> list[ChannelData | ChannelEnded]:
        """Return what a piece of a message says; ProtocolError if it makes no sense."""
        data = piece.data
        if self._channel is None and data:
            self._channel, data = data[0], data[1:]
        channel = self._channel
        if piece.last:
            self._channel = None
        if channel is None:
            return []
        if self.base64 or (self.close_signal and channel == CLOSE_CHANNEL):
            return self._collect(channel, data, last=piece.last)
        return [ChannelData(channel, data)] if data else []

    def _collect(self, channel: int, data: bytes, *, last: bool) -> list[ChannelData | ChannelEnded]:
        self._whole += data
        if len(self._whole) > WHOLE_LIMIT:
            raise ProtocolError(f"message longer than {WHOLE_LIMIT} bytes", TOO_BIG)
        if not last:
            return []
        whole, self._whole = bytes(self._whole), bytearray()
        if not self.base64:
            if len(whole) != 1:
                raise ProtocolError(f"close signal of {len(whole) + 1} bytes, expected 2")
            return [ChannelEnded(whole[0])]
        try:
            decoded = base64.b64decode(whole, validate=True)
        except binascii.Error as error:
            raise ProtocolError(f"message is not base64: {error}") from error
        return [ChannelData((channel - ord("0")) % 256, decoded)] if decoded else []
