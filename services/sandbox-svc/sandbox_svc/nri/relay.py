"""Asking plugins, one request at a time over the whole node, and what becomes of those that fail to answer.

An error that a plugin answers with is its word on the request. A plugin that does not answer in time or whose
connection ends has failed: it is dropped (unless it wished to be kept after a late answer), and the request goes on
without it, unless the plugin is required or wished that the request fail.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from prometheus_client import Counter, Histogram

from bulkhead.errors import BulkheadError, DeadlineExceeded, Unavailable, from_code
from bulkhead.metrics import BUCKETS
from sandbox_svc.nri.connection import Lost, TimedOut
from sandbox_svc.nri.events import KINDS
from sandbox_svc.nri.plugin import Plugin
from sandbox_svc.nri.registry import SYNC_WAIT, Registry

logger = logging.getLogger(__name__)

REQUESTS = Counter(
    "bulkhead_nri_requests_total",
    "Requests to NRI plugins by event and verdict: ok, refused (an error was the answer), timeout, lost, missing (a "
    "required plugin is not there), rejected (by a validator or because two plugins set the same).",
    ["event", "verdict"],
)
SECONDS = Histogram("bulkhead_nri_request_seconds", "Time that NRI plugins take to answer.", ["event"], buckets=BUCKETS)
#: Seconds that a request waits for those before it.
TURN = 60.0


class Relay:
    """The turns of requests, and the asking."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def turn(self, event: int, *, anyway: bool = False) -> Iterator[None]:
        """Hold the one turn there is: plugins hear of one thing after another, as their authors expect.

        A plugin that is being synchronized is waited for, so that it hears of this, too; `anyway` as in Gate.
        """
        with self._registry.gate.operation(SYNC_WAIT, anyway=anyway):
            if not self._turn.acquire(timeout=TURN):
                method = KINDS[event].method
                raise DeadlineExceeded(f"NRI {method}: plugins were busy with other requests for {TURN:g} s")
            try:
                yield
            finally:
                self._turn.release()

    def ask(self, plugin: Plugin, event: int, request: Message, *, required: bool = False) -> Any:
        """Return a plugin's answer, None if it has none to give or the request goes on without it.

        Raises what the plugin answered with, and the failure of a plugin that is required.
        """
        method, began = KINDS[event].method, time.monotonic()
        try:
            answer = plugin.ask(event, request)
        except (Lost, TimedOut) as error:
            self._failed(plugin, method, error, required or plugin.policy.fail_request)
            return None
        except BulkheadError as error:
            REQUESTS.labels(method, "refused").inc()
            raise from_code(error.code, f"NRI plugin {plugin.name} failed {method}: {error}") from error
        finally:
            SECONDS.labels(method).observe(time.monotonic() - began)
        REQUESTS.labels(method, "ok").inc()
        return answer

    def tell(self, event: int, request: Message) -> None:
        """Relay an event that nothing can stop any more: what goes wrong is logged, and the next plugin told."""
        with self.quietly(event), self.turn(event, anyway=True):
            for plugin in self._registry.plugins:
                if plugin.subscribes(event):
                    with self.quietly(event):
                        self.ask(plugin, event, request)

    @contextlib.contextmanager
    def quietly(self, event: int) -> Iterator[None]:
        """Log an error of the block instead of raising it."""
        try:
            yield
        except BulkheadError as error:
            logger.error("%s is done all the same: %s", KINDS[event].method, error)

    def _failed(self, plugin: Plugin, method: str, error: Lost | TimedOut, fatal: bool) -> None:
        late = isinstance(error, TimedOut)
        REQUESTS.labels(method, "timeout" if late else "lost").inc()
        text = f"NRI plugin {plugin.name} failed {method}: {error}"
        if not (late and plugin.policy.keep_connected):
            logger.error("%s; it is disconnected", text)
            self._registry.drop(plugin)
        if fatal:
            raise (DeadlineExceeded if late else Unavailable)(text) from error
        logger.warning("%s; the request goes on without it", text)
