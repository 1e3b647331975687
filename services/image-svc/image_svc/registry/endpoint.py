"""One host, as one pull talks to it: TLS, authorisation, redirects."""

import functools
import logging
import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from bulkhead.errors import FailedPrecondition
from image_svc.registry.credentials import Credentials
from image_svc.registry.failures import HostFailure, from_response, from_transport
from image_svc.registry.hosts import Host, Tls, is_loopback
from image_svc.registry.tokens import Authorizer

logger = logging.getLogger(__name__)

#: Seconds without a byte after which a connection counts as dead.
READ_TIMEOUT = 30.0
REDIRECTS = 10
#: Bytes of an error or token answer that are read.
SMALL_BODY = 1 << 20
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
        self._client: httpx.Client | None = None

    @property
    def origin(self) -> str:
        """Scheme and host as spoken to, for messages."""
        return f"{self._scheme}://{self.host.host}"

    def close(self) -> None:
        """Close every connection; a request after that opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def request(
        self, method: str, path: str, what: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """Ask for a path below the repository and yield the answer, whose body is still to be read.

        Answers of 400 and above raise HostFailure, as do connections that fail, also while the block reads.
        """
        response: httpx.Response | None = None
        try:
            response = self._authorized(method, path, what, dict(headers or {}))
            if response.status_code >= 400:
                self._read_small(response)
                raise from_response(response, what, self.origin, self.credentials)
            yield response
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise from_transport(error, what, self.origin) from error
        finally:
            if response is not None:
                response.close()

    def _authorized(self, method: str, path: str, what: str, headers: dict[str, str]) -> httpx.Response:
        for _ in range(3):
            used = self._authorizer.value
            response = self._follow(method, path, what, headers, used)
            if response.status_code != 401:
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
        request.extensions = {**request.extensions, "timeout": self._timeout.as_dict()}
        try:
            return self._http().send(request, stream=True)
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
            plain = self._fall_back(request, error)
            if plain is None:
                raise
        return self._http().send(plain, stream=True)

    def _fall_back(self, request: httpx.Request, error: Exception) -> httpx.Request | None:
        """Return the same request over http where the host may speak either and its TLS handshake failed."""
        ours = request.url.scheme == "https" and request.url.netloc.decode("ascii") == self.host.host
        if not (self.host.http_fallback and ours and isinstance(error, httpx.ConnectError)):
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
        request.headers["user-agent"] = _USER_AGENT
        response = self._send(request)
        try:
            self._read_small(response)
        finally:
            response.close()
        return response

    def _read_small(self, response: httpx.Response) -> None:
        """Read a body that has no reason to be large, cutting one that is."""
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > SMALL_BODY:
                break
        response._content = b"".join(parts)  # httpx offers no bounded read
        response.close()

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(
                    verify=_context(self.host),
                    timeout=self._timeout,
                    trust_env=not is_loopback(self.host.host),
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
                    follow_redirects=False,
                )
            return self._client


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
        context = ssl.create_default_context()
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
    return ssl.create_default_context()


@contextmanager
def _naming(file: object, host: Host) -> Iterator[None]:
    try:
        yield
    except (OSError, ssl.SSLError) as error:
        raise HostFailure(FailedPrecondition(f"{host.origin}: certificate file {file}: {error}")) from error
