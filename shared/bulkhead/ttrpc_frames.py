"""The frames of ttrpc, containerd's small RPC over a unix socket, without I/O.

A frame is a header of ten bytes (length and stream id, big-endian 32 bits each, then type and flags) and at most
4 MiB of protobuf. A unary call is one request frame (type 1) on an odd stream id that only rises, and one response
frame (type 2) on the same id. Format: github.com/containerd/ttrpc, PROTOCOL.md.

Bulkhead's own shim may attach one file descriptor to a response; such a frame carries FLAG_DESCRIPTOR, which ttrpc
leaves unused. The kernel delivers a descriptor no later than the first byte it was sent with, so descriptors and
flagged frames pair up in order.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from bulkhead.errors import ResourceExhausted
from bulkhead.proto.containerd.ttrpc_pb2 import KeyValue, Request, Response

MESSAGE_LIMIT = 4 << 20
REQUEST, RESPONSE, DATA = 1, 2, 3
FLAG_DESCRIPTOR = 0x80
#: The metadata key that carries containerd's namespace.
NAMESPACE_KEY = "containerd-namespace-ttrpc"

_HEADER = struct.Struct(">IIBB")


class Frame(NamedTuple):
    """One frame; payload is None where it was longer than MESSAGE_LIMIT and has been thrown away."""

    stream: int
    kind: int
    flags: int
    payload: bytes | None


def encode(stream: int, kind: int, payload: bytes, flags: int = 0) -> bytes:
    """Return a frame as bytes; ResourceExhausted if the payload is longer than the protocol allows."""
    if len(payload) > MESSAGE_LIMIT:
        raise ResourceExhausted(f"ttrpc message of {len(payload)} bytes, at most {MESSAGE_LIMIT} are allowed")
    return _HEADER.pack(len(payload), stream, kind, flags) + payload


class Decoder:
    """Cuts a byte stream into frames, however its reads fall."""

    __slots__ = ("_buffer", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take what was read and return every frame that it completes."""
        buffer, frames, at = self._buffer, [], 0
        buffer += data
        while True:
            if self._skip:
                step = min(self._skip, len(buffer) - at)
                self._skip -= step
                at += step
            if len(buffer) - at < _HEADER.size:
                break
            length, stream, kind, flags = _HEADER.unpack_from(buffer, at)
            if length > MESSAGE_LIMIT:
                self._skip, at = length, at + _HEADER.size
                frames.append(Frame(stream, kind, flags, None))
                continue
            end = at + _HEADER.size + length
            if end > len(buffer):
                break
            frames.append(Frame(stream, kind, flags, bytes(buffer[at + _HEADER.size : end])))
            at = end
        del buffer[:at]
        return frames

    @property
    def pending(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return bool(self._buffer or self._skip)


def request(
    stream: int, service: str, method: str, payload: bytes, timeout: float | None, metadata: Mapping[str, str]
) -> bytes:
    """Return the frame of a call; timeout is in seconds, None for none."""
    message = Request(
        service=service,
        method=method,
        payload=payload,
        timeout_nano=max(1, int(timeout * 1e9)) if timeout is not None else 0,
        metadata=[KeyValue(key=k, value=v) for k, v in metadata.items()],
    )
    return encode(stream, REQUEST, message.SerializeToString())


def response(stream: int, payload: bytes, code: int = 0, text: str = "", flags: int = 0) -> bytes:
    """Return the frame of an answer, which always carries a status; one that is too long becomes an error."""
    message = Response(payload=payload)
    message.status.SetInParent()
    if code:
        message.status.code, message.status.message = code, text
    raw = message.SerializeToString()
    if len(raw) > MESSAGE_LIMIT:
        return response(stream, b"", ResourceExhausted.code, f"answer of {len(raw)} bytes exceeds {MESSAGE_LIMIT}")
    return encode(stream, RESPONSE, raw, flags)
