"""Which sessions there are, and their counts for /metrics."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge

OPEN = Gauge("bulkhead_stream_sessions", "Sessions that are open.", ["kind", "transport"])
ENDED = Counter(
    "bulkhead_stream_sessions_ended_total",
    "Sessions that have ended, by outcome: ok, exit (code other than 0), error, hangup, idle, stopped.",
    ["kind", "transport", "outcome"],
)
BYTES = Counter("bulkhead_stream_bytes_total", "Bytes of payload, to or from clients.", ["kind", "direction"])
REFUSED = Counter("bulkhead_stream_refused_total", "Requests that got no session, by HTTP status.", ["status"])


@dataclass
class Entry:
    """One open session."""

    number: int
    kind: str
    transport: str
    protocol: str
    #: The first half of the ticket: which pod's shim, and no secret.
    shim: str
    peer: str
    began: float = field(default_factory=time.monotonic)
    #: Bytes of payload so far: (from the client, to the client).
    count: Callable[[], tuple[int, int]] = lambda: (0, 0)


class Table:
    """The open sessions, by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.open: dict[int, Entry] = {}

    def add(self, kind: str, transport: str, protocol: str, shim: str, peer: str) -> Entry:
        """Note a new session."""
        entry = Entry(next(self._numbers), kind, transport, protocol, shim, peer)
        self.open[entry.number] = entry
        OPEN.labels(kind, transport).inc()
        return entry

    def remove(self, entry: Entry, outcome: str) -> None:
        """Count a session that has ended."""
        del self.open[entry.number]
        OPEN.labels(entry.kind, entry.transport).dec()
        ENDED.labels(entry.kind, entry.transport, outcome).inc()
        received, sent = entry.count()
        BYTES.labels(entry.kind, "in").inc(received)
        BYTES.labels(entry.kind, "out").inc(sent)
