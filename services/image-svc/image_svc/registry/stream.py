"""The body of a blob answer: from the right byte, no longer than promised, never slower than allowed."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import httpx

from bulkhead.errors import DataLoss, DeadlineExceeded
from image_svc.patience import Patience
from image_svc.registry.connections import shut_down
from image_svc.registry.failures import HostFailure

#: Bytes to wait for, and bytes a second from which on that is done: 50 ms at most, as long as the speed lasts.
_GULP, _FAST = 256 * 1024, 5_000_000
#: What TLS may hold of the bytes to come, where the kernel does not count them: a record of 16 KiB and its frame that
#: is not whole yet, and another one where a proxy speaks TLS, too.
_HIDDEN = 2 * 18 * 1024
_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/(?:[0-9]+|\*)")


@dataclass(frozen=True)
class Rate:
    """The slowest download that is not called stalled: bytes a second over a window of seconds; 0 bytes: any."""

    minimum: int = 1024
    window: float = 30.0


class _Gulps:
    """Has the kernel wake the reader for large pieces only, as long as bytes come fast enough for that to be soon.

    A registry nearby else wakes it for every 40 to 64 KB, which costs more than what is then done with them.
    """

    def __init__(self, sock: socket.socket | None) -> None:
        self._socket = sock
        self._low_water = 1
        self._bytes, self._seconds, self._fast = 0, 0.0, False

    def adapt(self, count: int, seconds: float, left: int) -> None:
        """Set what to wait for now that so many bytes came in so many seconds, and `left` ones are still to come.

        Never more than what the kernel is sure to get of those: it would wait in vain. A few bytes that came while the
        reader was elsewhere are no sign of speed.
        """
        self._bytes += count
        self._seconds += seconds
        if self._bytes >= _GULP:
            self._fast = self._bytes >= _FAST * self._seconds
            self._bytes, self._seconds = 0, 0.0
        self._set(max(min(_GULP, left - _HIDDEN), 1) if self._fast else 1)

    def close(self) -> None:
        """Have the next answer on this connection wake the reader with its first byte."""
        self._set(1)

    def _set(self, low_water: int) -> None:
        if self._socket is not None and low_water != self._low_water:
            with suppress(OSError):  # closed meanwhile, which whoever reads is told
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)
            self._low_water = low_water


class _Meter:
    """Watches that the bytes of each window suffice; time the reader spends elsewhere does not count."""

    def __init__(self, rate: Rate, what: str) -> None:
        self._rate = rate
        self._what = what
        self._seconds = 0.0
        self._bytes = 0

    def add(self, count: int, seconds: float) -> None:
        self._bytes += count
        self._seconds += seconds
        if self._seconds < self._rate.window:
            return
        if self._bytes < self._rate.minimum * self._seconds:
            speed = self._bytes / self._seconds
            text = f"{self._what}: stalled: {speed:.0f} B/s over {self._seconds:.0f} s, minimum {self._rate.minimum}"
            raise HostFailure(DeadlineExceeded(text), retry=True)
        self._seconds, self._bytes = 0.0, 0


def body(
    response: httpx.Response, offset: int, size: int, what: str, rate: Rate, patience: Patience
) -> Iterator[memoryview]:
    """Yield the bytes of a blob from `offset` to its promised `size`, whether or not the server honoured Range.

    A body that is longer or shorter than promised is DataLoss, one that breaks off may be tried again.
    """
    origin = str(response.url.copy_with(query=None, userinfo=b""))
    skip = _skip(response, offset, size, what, origin)
    position = offset - skip
    meter = _Meter(rate, f"{what}: {origin}")
    gulps = _Gulps(_socket(response))
    with patience.interruptible(lambda: _hang_up(response)), closing(gulps):
        began = time.monotonic()
        # With a size httpx would hold bytes back until there are so many, and hide a trickle.
        for part in response.iter_raw():
            seconds = time.monotonic() - began
            meter.add(len(part), seconds)
            patience.check()
            position += len(part)
            gulps.adapt(len(part), seconds, size - position)
            if position > size:
                raise HostFailure(DataLoss(f"{what}: {origin} sends more than the {size} bytes that the manifest says"))
            if position > offset:
                fresh = min(len(part), position - offset)
                yield memoryview(part)[len(part) - fresh :]
            began = time.monotonic()
    if position != size:
        raise HostFailure(DataLoss(f"{what}: {origin} sent {position} bytes, the manifest says {size}"))


def _skip(response: httpx.Response, offset: int, size: int, what: str, origin: str) -> int:
    """Return how many bytes before `offset` the answer begins, after checking that its length can be right."""
    start = 0
    if response.status_code == 206:
        match = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
        if match is None or int(match[1]) > offset:
            raise HostFailure(DataLoss(f"{what}: {origin} answered another range than asked for"))
        start = int(match[1])
    length = response.headers.get("content-length", "")
    if length.isdecimal() and start + int(length) != size:
        total = start + int(length)
        raise HostFailure(DataLoss(f"{what}: {origin} has {total} bytes, the manifest says {size}"))
    return offset - start


def _hang_up(response: httpx.Response) -> None:
    if (sock := _socket(response)) is not None:
        shut_down(sock)


def _socket(response: httpx.Response) -> socket.socket | None:
    stream = response.extensions.get("network_stream")
    sock = stream.get_extra_info("socket") if stream is not None else None
    return sock if isinstance(sock, socket.socket) else None
