"""The HTTP connections to one host, and to those that it sends us to: how they are made, read, and woken."""

import encodings.idna  # noqa: F401 - host names are encoded by it, which the first pull of all shall not wait for
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpcore
import httpx

from bulkhead.courtesy import step_aside
from image_svc.registry import arrivals
from image_svc.registry.hosts import Host, is_loopback
from image_svc.registry.tls import context, unused

#: Seconds without a byte after which a connection counts as dead.
READ_TIMEOUT = 30.0
#: What httpcore reads at once, 64 KiB by itself: a blob of a fast registry costs a quarter of the steps.
httpcore.HTTP11Connection.READ_NUM_BYTES = 256 * 1024
arrivals.install()


class Connections:
    """Sends requests as they are; safe to share between threads."""

    def __init__(self, host: Host, read_timeout: float) -> None:
        self._host = host
        self._timeout = httpx.Timeout(read_timeout, connect=host.dial_timeout, pool=None)
        self._lock = threading.Lock()
        #: By whether they are for other hosts than ours, and scheme.
        self._clients: dict[tuple[bool, str], httpx.Client] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def send(self, request: httpx.Request, note: Callable[[str], object] = lambda event: None) -> httpx.Response:
        """Send a request and return the answer, whose body is still to be read; `note` hears httpcore's events."""
        step_aside()

        def trace(event: str, info: dict[str, Any]) -> None:
            note(event)
            self._trace(event, info)

        request.extensions = {**request.extensions, "timeout": self._timeout.as_dict(), "trace": trace}
        return self._client(request.url).send(request, stream=True)

    def close(self) -> None:
        """Close every connection; a request after that opens new ones."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def hang_up(self) -> None:
        """Wake every thread that waits for an answer; its request fails."""
        with self._lock:  # a set that grows cannot be gone through
            sockets = list(self._sockets)
        for sock in sockets:
            shut_down(sock)

    def _client(self, url: httpx.URL) -> httpx.Client:
        # What a registry on this machine may do without, others that it sends us to may not.
        elsewhere = is_loopback(self._host.host) and not is_loopback(url.netloc.decode("ascii"))
        key = (elsewhere, url.scheme)
        with self._lock:
            if key not in self._clients:
                tls = replace(self._host.tls, skip_verify=False) if elsewhere else self._host.tls
                by_proxy = elsewhere or not is_loopback(self._host.host)  # which may speak TLS itself
                self._clients[key] = httpx.Client(
                    verify=context(replace(self._host, tls=tls)) if by_proxy or url.scheme == "https" else unused(),
                    timeout=self._timeout,
                    trust_env=by_proxy,
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
                    follow_redirects=False,
                )
            return self._clients[key]

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Note the sockets as httpcore opens them (its "trace" extension), so that a thread at one can be woken."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._sockets.add(info["return_value"].get_extra_info("socket"))


def shut_down(sock: socket.socket) -> None:
    """Wake a thread that waits for a socket: closing the descriptor would not."""
    try:
        # The plain socket's method, since an SSLSocket's would first take its TLS state away from the reader.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return
