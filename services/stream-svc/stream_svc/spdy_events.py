"""What a SPDY connection says to its owner, and the numbers on the wire (SPDY protocol draft 3.1, section 2.6)."""

from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """Types of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Status(IntEnum):
    """Why a stream was reset."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    INTERNAL_ERROR = 6


class ProtocolError(Exception):
    """The peer sent what no SPDY/3.1 peer may send; the connection must end."""


@dataclass(frozen=True)
class StreamOpened:
    """The peer opened a stream and waits for reply() or reset()."""

    stream: int
    headers: dict[str, str]


@dataclass(frozen=True)
class StreamReplied:
    """The peer accepted a stream that we opened."""

    stream: int
    headers: dict[str, str]


@dataclass(frozen=True)
class Data:
    """Some bytes of a stream; a frame may come in several pieces."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class StreamEnded:
    """The peer will send nothing more on this stream (FIN)."""

    stream: int


@dataclass(frozen=True)
class StreamReset:
    """The peer gave the stream up, in both directions."""

    stream: int
    status: int


@dataclass(frozen=True)
class GoAway:
    """The peer opens no more streams."""

    status: int


Event = StreamOpened | StreamReplied | Data | StreamEnded | StreamReset | GoAway
