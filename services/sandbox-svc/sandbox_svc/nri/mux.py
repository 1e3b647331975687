"""The frames that carry two ttrpc connections over one socket, without I/O.

A frame is a header of eight bytes (connection id and payload length, big-endian 32 bits each) and the payload.
Connection 1 is the plugin's service, connection 2 the runtime's. Format: github.com/containerd/nri, pkg/net/multiplex.

The Go module's reader hands each payload to a buffered reader whose buffer holds 4096 bytes: while that reader looks
for a ttrpc header, a longer payload makes it fail, and more than 256 payloads in its queue end the connection. So a
message is sent as the Go module's own writer does it: its first 4096 bytes as one frame, all the rest as another.
"""

import struct

from bulkhead.errors import InvalidArgument
from bulkhead.ttrpc_frames import MESSAGE_LIMIT

PLUGIN_SERVICE, RUNTIME_SERVICE = 1, 2
#: A ttrpc header and the longest ttrpc message.
PAYLOAD_LIMIT = 10 + MESSAGE_LIMIT

_HEADER = struct.Struct(">II")
_FIRST = 4096


def encode(connection: int, message: bytes) -> bytes:
    """Return one whole ttrpc frame as frames of a connection."""
    head, rest = message[:_FIRST], message[_FIRST:]
    parts = [_HEADER.pack(connection, len(head)), head]
    if rest:
        parts += [_HEADER.pack(connection, len(rest)), rest]
    return b"".join(parts)


class Decoder:
    """Cuts a byte stream into what belongs to which connection, however its reads fall; keeps no payload itself."""

    __slots__ = ("_connection", "_header", "_left")

    def __init__(self) -> None:
        self._header = bytearray()
        self._connection = 0
        self._left = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take what was read and return (connection id, bytes) pairs, in order and of any connection id.

        InvalidArgument if a frame claims more than PAYLOAD_LIMIT bytes: there is no way to find the next one.
        """
        found: list[tuple[int, bytes]] = []
        at, end = 0, len(data)
        while at < end:
            if self._left:
                taken = data[at : at + self._left]
                found.append((self._connection, taken))
                self._left -= len(taken)
                at += len(taken)
                continue
            missing = _HEADER.size - len(self._header)
            self._header += data[at : at + missing]
            at += missing
            if len(self._header) == _HEADER.size:
                self._connection, self._left = _HEADER.unpack(self._header)
                self._header.clear()
                if self._left > PAYLOAD_LIMIT:
                    raise InvalidArgument(f"frame of {self._left} bytes, at most {PAYLOAD_LIMIT} are allowed")
        return found

    @property
    def pending(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return bool(self._header or self._left)
