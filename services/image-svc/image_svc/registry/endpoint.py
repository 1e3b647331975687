"""One host, as one pull talks to it: TLS, authorisation, redirects."""

import functools
import logging
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from bulkhead.errors import FailedPrecondition
from image_svc.patience import Patience
from image_svc.registry.credentials import Credentials
from image_svc.registry.failures import HostFailure, from_response, from_transport, is_distrust
from image_svc.registry.hosts import Host, Tls, is_loopback
from image_svc.registry.tokens import Authorizer

logger = logging.getLogger(__name__)

#: Seconds without a byte after which a connection counts as dead.
READ_TIMEOUT = 30.0
REDIRECTS = 10
#: Bytes of an error or token answer that are read, and seconds that it may take to arrive.
SMALL_BODY, SMALL_BODY_TIME = 1 << 20, 30.0
_MOVED = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = "bulkhead-image-svc"


class Endpoint:
    """Sends requests for one repository to one host; safe to share between threads.

    `namespace` is the registry's name in the image reference; a host that is not that registry itself is told it as
    `ns=`, so that one mirror can serve several registries (containerd docs/hosts.md).
    """

    def __init__(
        self,
        host: Host,
        namespace: str,
        repository: str,
        credentials: Credentials,
        *,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        self.host = host
        self.credentials = credentials
        self._namespace = namespace
        self._repository = repository
        self._scheme = host.scheme
        self._authorizer = Authorizer(
            lambda: self.origin, f"repository:{repository}:pull", credentials, self._send_whole
        )
        self._timeout = httpx.Timeout(read_timeout, connect=host.dial_timeout, pool=None)
        self._lock = threading.Lock()
        #: By whether they are for other hosts than ours.
        self._clients: dict[bool, httpx.Client] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    @property
    def origin(self) -> str:
        """Scheme and host as spoken to, for messages."""
        return f"{self._scheme}://{self.host.host}"

    def close(self) -> None:
        """Close every connection; a request after that opens new ones."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    @contextmanager
    def request(
        self, method: str, path: str, what: str, patience: Patience, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """Ask for a path below the repository and yield the answer, whose body is still to be read.

        Answers of 400 and above raise HostFailure, as do connections that fail, also while the block reads. The head
        arrives while there is patience, however slowly a server sends it.
        """
        response: httpx.Response | None = None
        try:
            with patience.bounded(self._hang_up):
                response = self._authorized(method, path, what, dict(headers or {}))
            if response.status_code >= 400:
                self._read_small(response)
                raise from_response(response, what, self.origin, self.credentials)
            yield response
        # ValueError: a number in a header that Python refuses to read for its length.
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            raise from_transport(error, what, self.origin) from error
        finally:
            if response is not None:
                response.close()

    def _authorized(self, method: str, path: str, what: str, headers: dict[str, str]) -> httpx.Response:
        for _ in range(3):
            used = self._authorizer.value
            response = self._follow(method, path, what, headers, used)
            # Whoever a redirect led to has no say in where our credentials go (CVE-2020-15157).
            if response.status_code != 401 or _origin(response.url) != _origin(httpx.URL(self.origin)):
                return response
            self._read_small(response)
            if not self._authorizer.answer(response, used, what):
                return response
            response.close()
        return response

    def _follow(self, method: str, path: str, what: str, headers: dict[str, str], authorization: str) -> httpx.Response:
        """Send and follow redirects; whoever else is sent to sees neither credentials nor configured headers."""
        request = self._first_request(method, path, headers, authorization)
        origin: tuple[str, str, int | None] | None = _origin(request.url)
        for _ in range(REDIRECTS):
            response = self._send(request)
            target = response.headers.get("location")
            if response.status_code not in _MOVED or not target:
                return response
            response.close()
            url = request.url.join(target)
            if url.scheme not in ("http", "https"):
                break
            if _origin(url) == origin:
                request = httpx.Request(method, url, headers=request.headers)
            else:
                origin = None  # even on the way back: the registry did not write that address
                request = httpx.Request(method, url, headers={"user-agent": _USER_AGENT, **_PLAIN, **headers})
        raise HostFailure(FailedPrecondition(f"{what}: {self.origin} redirects in a circle or to nowhere"))

    def _first_request(self, method: str, path: str, headers: dict[str, str], authorization: str) -> httpx.Request:
        url = httpx.URL(f"{self._scheme}://{self.host.host}{self.host.path}/{self._repository}/{path}")
        if not self.host.serves(self._namespace):
            url = url.copy_merge_params({"ns": self._namespace})
        pairs = [("user-agent", _USER_AGENT), *_PLAIN.items(), *headers.items()]
        own = {name.lower() for name, _ in self.host.header}
        if authorization and "authorization" not in own:
            pairs.append(("authorization", authorization))
        pairs = [pair for pair in pairs if pair[0].lower() not in own] + list(self.host.header)
        return httpx.Request(method, url, headers=pairs)

    def _send(self, request: httpx.Request) -> httpx.Response:
        request.headers.setdefault("host", request.url.netloc.decode("ascii"))
        request.extensions = {**request.extensions, "timeout": self._timeout.as_dict(), "trace": self._trace}
        try:
            return self._http(request.url).send(request, stream=True)
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
            plain = self._fall_back(request, error)
            if plain is None:
                raise
        return self._http(plain.url).send(plain, stream=True)

    def _fall_back(self, request: httpx.Request, error: Exception) -> httpx.Request | None:
        """Return the same request over http where the host may speak either and does not speak TLS.

        A certificate that does not pass is no reason to go on without any.
        """
        ours = request.url.scheme == "https" and request.url.netloc.decode("ascii") == self.host.host
        if not (self.host.http_fallback and ours and isinstance(error, httpx.ConnectError)) or is_distrust(error):
            return None
        logger.debug("%s does not speak TLS, going on with http: %s", self.host.host, error)
        self._scheme = "http"
        return httpx.Request(
            request.method,
            request.url.copy_with(scheme="http"),
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )

    def _send_whole(self, request: httpx.Request) -> httpx.Response:
        """Send a token request, whose realm may be anywhere, and read the answer."""
        request.headers.update({"user-agent": _USER_AGENT, **_PLAIN})
        response = self._send(request)
        try:
            self._read_small(response)
        finally:
            response.close()
        return response

    def _read_small(self, response: httpx.Response) -> None:
        """Read a body that has no reason to be large or slow, cutting one that is.

        One that is compressed, though nobody asked for that, counts as empty: 64 KiB of zstd can hold gigabytes.
        """
        if response.is_closed:  # it was read for its challenge already
            return
        data, until = bytearray(), time.monotonic() + SMALL_BODY_TIME
        if response.headers.get("content-encoding", "identity") == "identity":
            for part in response.iter_raw():
                data += part
                if len(data) > SMALL_BODY or time.monotonic() > until:
                    break
        response._content = bytes(data)  # httpx offers no bounded read
        response.close()

    def _http(self, url: httpx.URL) -> httpx.Client:
        # What a registry on this machine may do without, others that it sends us to may not.
        elsewhere = is_loopback(self.host.host) and not is_loopback(url.netloc.decode("ascii"))
        with self._lock:
            if elsewhere not in self._clients:
                tls = replace(self.host.tls, skip_verify=False) if elsewhere else self.host.tls
                self._clients[elsewhere] = httpx.Client(
                    verify=_context(replace(self.host, tls=tls)),
                    timeout=self._timeout,
                    trust_env=elsewhere or not is_loopback(self.host.host),
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
                    follow_redirects=False,
                )
            return self._clients[elsewhere]

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Note the sockets as httpcore opens them (its "trace" extension), so that a thread at one can be woken."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.add(info["return_value"].get_extra_info("socket"))

    def _hang_up(self) -> None:
        for sock in list(self._sockets):
            shut_down(sock)


def shut_down(sock: socket.socket) -> None:
    """Wake a thread that waits for a socket: closing the descriptor would not."""
    try:
        # The plain socket's method, since an SSLSocket's would first take its TLS state away from the reader.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return


#: Bytes are wanted as they are stored: a digest covers no transfer encoding of a proxy's choice.
_PLAIN = {"accept-encoding": "identity"}


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _context(host: Host) -> ssl.SSLContext:
    """Return the TLS settings of a host on top of the system's authorities; an unreadable file is named."""
    if host.tls == Tls():
        bundle = ssl.get_default_verify_paths().cafile
        return _system_context(os.stat(bundle).st_mtime_ns if bundle and os.path.exists(bundle) else 0)
    if host.tls.skip_verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = _verifying()
    for authority in host.tls.ca:
        with _naming(authority, host):
            context.load_verify_locations(authority)
    for certificate, key in host.tls.client:
        with _naming(certificate, host):
            context.load_cert_chain(certificate, key)
    return context


@functools.lru_cache(maxsize=1)
def _system_context(stamp: int) -> ssl.SSLContext:
    """Return the system's authorities, which take 20 ms to read, as of the bundle's modification time."""
    return _verifying()


def _verifying() -> ssl.SSLContext:
    """Return a context that verifies with the system's authorities, as containerd does and on every Python alike.

    Python 3.13's default refuses certificates that lack extensions of RFC 5280, as registries' own authorities often
    do, and is the first to take an intermediate authority as an anchor.
    """
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@contextmanager
def _naming(file: object, host: Host) -> Iterator[None]:
    try:
        yield
    except (OSError, ssl.SSLError) as error:
        raise HostFailure(FailedPrecondition(f"{host.origin}: certificate file {file}: {error}")) from error
