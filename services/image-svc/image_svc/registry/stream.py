"""The body of a blob answer: from the right byte, no longer than promised, never slower than allowed."""

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from bulkhead.errors import DataLoss, DeadlineExceeded
from image_svc.patience import Patience
from image_svc.registry.endpoint import shut_down
from image_svc.registry.failures import HostFailure

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/(?:[0-9]+|\*)")


@dataclass(frozen=True)
class Rate:
    """The slowest download that is not called stalled: bytes a second over a window of seconds; 0 bytes: any."""

    minimum: int = 1024
    window: float = 30.0


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
    with patience.interruptible(lambda: _hang_up(response)):
        began = time.monotonic()
        # With a size httpx would hold bytes back until there are so many, and hide a trickle.
        for part in response.iter_raw():
            meter.add(len(part), time.monotonic() - began)
            patience.check()
            position += len(part)
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
    stream = response.extensions.get("network_stream")
    sock = stream.get_extra_info("socket") if stream is not None else None
    if isinstance(sock, socket.socket):
        shut_down(sock)
