"""SPDY/3.1 framing without I/O: bytes in, events out; frames in, bytes out.

Spoken as the Kubernetes clients speak it, that is as Go's spdystream does: no flow control (WINDOW_UPDATE and SETTINGS
are read and ignored, never sent, never waited for), no priorities, streams opened by the client only. Frame layouts:
SPDY protocol draft 3.1, section 2. The only exception that receive_data() raises is ProtocolError.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stream_svc.spdy_events import (
    Data,
    Event,
    GoAway,
    Kind,
    ProtocolError,
    Status,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    StreamReset,
)
from stream_svc.spdy_headers import BadHeaders, Compressor, Decompressor

#: Control frames longer than this end the connection; the longest sensible one is a few hundred bytes of headers.
CONTROL_LIMIT = 64 * 1024
#: The 24 bits of a frame's length.
DATA_LIMIT = (1 << 24) - 1
FLAG_FIN = 1
_VERSION = 3


@dataclass
class _Stream:
    """Which halves of a stream are still open."""

    receiving: bool = True
    sending: bool = True


@dataclass
class _Partial:
    """The data frame that is being received."""

    stream: int = 0
    left: int = 0
    fin: bool = False


@dataclass
class Connection:
    """One end of a connection. Give received bytes to receive_data(); send what take() returns after every call."""

    client: bool = False
    #: Streams of the peer open at a time; more are refused.
    stream_limit: int = 1024
    #: Stream id of the latest stream the peer opened.
    last_stream: int = 0
    _streams: dict[int, _Stream] = field(default_factory=dict)
    _received: bytearray = field(default_factory=bytearray)
    _partial: _Partial = field(default_factory=_Partial)
    _out: list[bytes] = field(default_factory=list)
    _inflate: Decompressor | None = None
    _deflate: Compressor | None = None
    _next_id: int = 1

    def take(self) -> bytes:
        """Return the bytes to send and forget them."""
        out, self._out = b"".join(self._out), []
        return out

    def knows(self, stream: int) -> bool:
        """Tell whether a stream is open in at least one direction."""
        return stream in self._streams

    def idle(self) -> bool:
        """Tell whether no stream is open."""
        return not self._streams

    # ---- sending

    def open(self, headers: Mapping[str, str]) -> int:
        """Open a stream and return its id; clients only."""
        stream, self._next_id = self._next_id, self._next_id + 2
        self._streams[stream] = _Stream()
        self._control(Kind.SYN_STREAM, struct.pack(">IIH", stream, 0, 0) + self._block(headers))
        return stream

    def reply(self, stream: int) -> None:
        """Accept a stream that the peer opened."""
        if stream in self._streams:
            self._control(Kind.SYN_REPLY, struct.pack(">I", stream) + self._block({}))

    def send_data(self, stream: int, data: bytes, *, fin: bool = False) -> bool:
        """Send bytes, and with `fin` the end of our half; False if the stream takes no more data."""
        known = self._streams.get(stream)
        if known is None or not known.sending:
            return False
        for start in range(0, max(len(data), 1), DATA_LIMIT):
            piece = data[start : start + DATA_LIMIT]
            last = fin and start + DATA_LIMIT >= len(data)
            self._out.append(struct.pack(">II", stream, len(piece) | (FLAG_FIN << 24 if last else 0)) + piece)
        if fin:
            known.sending = False
            self._forget_if_done(stream, known)
        return True

    def reset(self, stream: int, status: Status = Status.CANCEL) -> None:
        """Give a stream up in both directions; nothing happens if it is closed already."""
        if self._streams.pop(stream, None) is not None:
            self._send_reset(stream, status)

    def ping(self, ident: int) -> None:
        """Send a ping; ours are even, a client's odd."""
        self._control(Kind.PING, struct.pack(">I", ident))

    def goaway(self) -> None:
        """Say that no more streams are taken."""
        self._control(Kind.GOAWAY, struct.pack(">II", self.last_stream, 0))

    def _send_reset(self, stream: int, status: Status) -> None:
        self._control(Kind.RST_STREAM, struct.pack(">II", stream, status))

    def _control(self, kind: Kind, payload: bytes, flags: int = 0) -> None:
        self._out.append(struct.pack(">HHI", 0x8000 | _VERSION, kind, flags << 24 | len(payload)) + payload)

    def _block(self, headers: Mapping[str, str]) -> bytes:
        if self._deflate is None:
            self._deflate = Compressor()
        return self._deflate.block(headers)

    def _forget_if_done(self, stream: int, known: _Stream) -> None:
        if not known.sending and not known.receiving:
            del self._streams[stream]

    # ---- receiving

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """Take received bytes and return the events in them, one by one; raises ProtocolError.

        The iterator must be run to its end before the next call.
        """
        self._received += data
        while (events := self._step()) is not None:
            yield from events

    def _step(self) -> list[Event] | None:
        """Return the events of the next frame or piece of one; None when more bytes are needed."""
        if self._partial.left:
            return self._data_piece()
        if len(self._received) < 8:
            return None
        first, second = struct.unpack_from(">II", self._received)
        flags, length = second >> 24, second & DATA_LIMIT
        if not first >> 31:
            del self._received[:8]
            self._partial = _Partial(first, length, bool(flags & FLAG_FIN))
            return [] if length else self._data_end()
        if length > CONTROL_LIMIT:
            raise ProtocolError(f"control frame of {length} bytes, at most {CONTROL_LIMIT} are allowed")
        if len(self._received) < 8 + length:
            return None
        payload = bytes(self._received[8 : 8 + length])
        del self._received[: 8 + length]
        if first >> 16 & 0x7FFF != _VERSION:
            raise ProtocolError(f"frame of SPDY version {first >> 16 & 0x7FFF}, expected {_VERSION}")
        return self._control_frame(first & 0xFFFF, flags, payload)

    def _data_piece(self) -> list[Event] | None:
        if not self._received:
            return None
        with memoryview(self._received) as view:
            piece = bytes(view[: self._partial.left])
        del self._received[: len(piece)]
        self._partial.left -= len(piece)
        known = self._streams.get(self._partial.stream)
        events: list[Event] = []
        # Data for a stream that was reset may still be under way: dropped without a word, as Go does.
        if known is not None and known.receiving:
            events.append(Data(self._partial.stream, piece))
        return events if self._partial.left else events + self._data_end()

    def _data_end(self) -> list[Event]:
        return self._half_close(self._partial.stream) if self._partial.fin else []

    def _half_close(self, stream: int) -> list[Event]:
        known = self._streams.get(stream)
        if known is None or not known.receiving:
            return []
        known.receiving = False
        self._forget_if_done(stream, known)
        return [StreamEnded(stream)]

    def _control_frame(self, kind: int, flags: int, payload: bytes) -> list[Event]:
        try:
            if kind == Kind.SYN_STREAM:
                return self._on_syn_stream(flags, payload)
            if kind in (Kind.SYN_REPLY, Kind.HEADERS):
                return self._on_headers(kind, flags, payload)
            if kind == Kind.RST_STREAM:
                return self._on_reset(*struct.unpack(">II", payload))
            if kind == Kind.PING:
                return self._on_ping(*struct.unpack(">I", payload))
            if kind == Kind.GOAWAY:
                return [GoAway(struct.unpack(">II", payload)[1])]
        except struct.error as error:
            raise ProtocolError(f"control frame of type {kind} has {len(payload)} bytes: {error}") from error
        except BadHeaders as error:
            raise ProtocolError(str(error)) from error
        # SETTINGS and WINDOW_UPDATE mean nothing without flow control; the draft has unknown types ignored.
        return []

    def _headers(self, block: bytes) -> dict[str, str]:
        if self._inflate is None:
            self._inflate = Decompressor()
        return self._inflate.headers(block)

    def _on_syn_stream(self, flags: int, payload: bytes) -> list[Event]:
        stream = struct.unpack_from(">IIH", payload)[0] & 0x7FFFFFFF
        headers = self._headers(payload[10:])
        if self.client or stream % 2 == 0 or stream <= self.last_stream:
            self._send_reset(stream, Status.PROTOCOL_ERROR)
            return []
        self.last_stream = stream
        if len(self._streams) >= self.stream_limit:
            self._send_reset(stream, Status.REFUSED_STREAM)
            return []
        self._streams[stream] = _Stream()
        return [StreamOpened(stream, headers), *(self._half_close(stream) if flags & FLAG_FIN else [])]

    def _on_headers(self, kind: int, flags: int, payload: bytes) -> list[Event]:
        stream = struct.unpack_from(">I", payload)[0] & 0x7FFFFFFF
        headers = self._headers(payload[4:])
        replied = kind == Kind.SYN_REPLY and self.client and stream in self._streams
        return [
            *([StreamReplied(stream, headers)] if replied else []),
            *(self._half_close(stream) if flags & FLAG_FIN else []),
        ]

    def _on_reset(self, stream: int, status: int) -> list[Event]:
        known = self._streams.pop(stream & 0x7FFFFFFF, None)
        return [] if known is None else [StreamReset(stream & 0x7FFFFFFF, status)]

    def _on_ping(self, ident: int) -> list[Event]:
        # Even ids are answers to the server's pings, odd ones the client's questions.
        if (ident % 2 == 1) != self.client:
            self.ping(ident)
        return []
