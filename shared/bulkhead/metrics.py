"""Metrics and health of a service: what it counts, and the loopback HTTP face that shows it.

GET /metrics (Prometheus text format), /healthz (200 while the process answers), /readyz (200 or 503 with one line
for each reason it is not ready). The face is the standard library's: a web framework would cost 25 MB a process.
"""

import contextlib
import http.server
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

from bulkhead import __version__

logger = logging.getLogger(__name__)

#: Connections to one face at a time.
CONNECTION_LIMIT = 64
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

BUILD_INFO = Gauge("bulkhead_build_info", "Constant 1, labelled with service and version.", ["service", "version"])
CALLS = Histogram("bulkhead_rpc_seconds", "Duration of gRPC calls served.", ["method", "code"], buckets=BUCKETS)
STAGES = Histogram(
    "bulkhead_stage_seconds",
    "Duration of one stage of an operation (cni_add, shim_start, …).",
    ["stage", "outcome"],
    buckets=BUCKETS,
)
ERRORS = Counter("bulkhead_errors_total", "Unexpected errors by the place that met them.", ["where"])

#: Returns why the service is not ready; an empty list means it is.
Readiness = Callable[[], list[str]]

#: Returns lines that /readyz shows and that make nothing unready, such as a key file that cannot be used.
Notes = Callable[[], list[str]]


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Time the block as one stage, with outcome "ok" or "error"."""
    began, outcome = time.monotonic(), "error"
    try:
        yield
        outcome = "ok"
    finally:
        STAGES.labels(name, outcome).observe(time.monotonic() - began)


class _Handler(http.server.BaseHTTPRequestHandler):
    readiness: Readiness
    notes: Notes
    timeout = 10

    def do_GET(self) -> None:
        """Answer the three paths, 404 for the rest."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, generate_latest(REGISTRY), CONTENT_TYPE_LATEST)
        elif path == "/healthz":
            self._answer(200, b"ok\n")
        elif path == "/readyz":
            reasons = self.readiness()
            lines = [*(reasons or ["ok"]), *self.notes()]
            self._answer(503 if reasons else 200, "\n".join(lines).encode() + b"\n")
        else:
            self._answer(404, b"not found: the paths are /metrics, /healthz and /readyz\n")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep scrapes out of the log."""


class _Server(http.server.ThreadingHTTPServer):
    """A thread a connection, up to a limit: any process of the node may connect, and stay silent until the time-out."""

    daemon_threads = True
    #: Of the socket that the base class makes and that is replaced: the decryptor may make none for a network.
    address_family = socket.AF_UNIX

    def __init__(self, listener: socket.socket, handler: type[_Handler]) -> None:
        super().__init__(listener.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._room = threading.Semaphore(CONNECTION_LIMIT)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or close it if there are too many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a request; a client that gave up waiting is nothing to log."""
        if not isinstance(sys.exception(), ConnectionError):
            logger.exception("a request for metrics or health failed")


def serve(
    service: str,
    readiness: Readiness,
    *,
    port: int = 0,
    listener: socket.socket | None = None,
    notes: Notes = list,
) -> int:
    """Serve the face in the background on 127.0.0.1:port, or on a listening socket handed over; return the port.

    A negative port switches the face off.
    """
    BUILD_INFO.labels(service, __version__).set(1)
    if listener is None:
        if port < 0:
            return port
        listener = socket.create_server(("127.0.0.1", port), backlog=16)
    handler = type("Handler", (_Handler,), {"readiness": staticmethod(readiness), "notes": staticmethod(notes)})
    server = _Server(listener, handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(listener.getsockname()[1])
