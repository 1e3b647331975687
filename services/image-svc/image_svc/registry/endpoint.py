"""One host, as one pull or push talks to it: authorisation, redirects, connections."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field

import httpx

from bulkhead.errors import FailedPrecondition
from image_svc.patience import Patience
from image_svc.registry import scopes
from image_svc.registry.connections import READ_TIMEOUT, Connections
from image_svc.registry.credentials import Account
from image_svc.registry.failures import HostFailure, from_response, from_transport, is_no_tls, is_tls
from image_svc.registry.hosts import Host
from image_svc.registry.tokens import Authorizer

logger = logging.getLogger(__name__)

REDIRECTS = 10
#: Requests until a registry has said no often enough to the same credentials.
ATTEMPTS = 3
#: Bytes of an error or token answer that are read, and seconds that it may take to arrive.
SMALL_BODY, SMALL_BODY_TIME = 1 << 20, 30.0
#: Bytes of a body that are read for nothing but to keep the connection, as many as Go's client reads.
_SHORT_BODY = 2048
_MOVED = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = "bulkhead-image-svc"


@dataclass(frozen=True)
class Call:
    """A request below a repository: what to do, where, and with which body, which may have to be sent again."""

    method: str
    #: Below the repository.
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Where the registry said to go on (Location), relative to `path` or absolute; empty for `path` itself.
    location: str = ""
    #: Parameters added to the address.
    query: Mapping[str, str] = field(default_factory=dict)
    #: Makes the body anew; its length must stand in `headers`.
    body: Callable[[], Iterable[bytes]] | None = None

    def to(self, url: httpx.URL, headers: Sequence[tuple[str, str]] | httpx.Headers) -> httpx.Request:
        """Return the request to an address."""
        return httpx.Request(self.method, url, headers=headers, content=self.body() if self.body else None)


class Endpoint:
    """Sends requests for one repository to one host; safe to share between threads.

    `namespace` is the registry's name in the image reference; a host that is not that registry itself is told it as
    `ns=`, so that one mirror can serve several registries (containerd docs/hosts.md). `actions` are what a token must
    be good for.
    """

    def __init__(
        self,
        host: Host,
        namespace: str,
        repository: str,
        account: Account,
        *,
        actions: Sequence[str] = ("pull",),
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        self.host = host
        self.account = account
        self._namespace = namespace
        self._repository = repository
        self._scheme = host.scheme
        scope = scopes.repository(repository, *actions)
        self.authorizer = Authorizer(lambda: self.origin, scope, account, self._send_whole)
        self._connections = Connections(host, read_timeout)

    @property
    def origin(self) -> str:
        """Scheme and host as spoken to, for messages."""
        return f"{self._scheme}://{self.host.host}"

    def close(self) -> None:
        """Close every connection; a request after that opens new ones."""
        self._connections.close()

    def request(
        self, method: str, path: str, what: str, patience: Patience, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[httpx.Response]:
        """Ask for a path below the repository, as `call` does."""
        return self.call(Call(method, path, headers or {}), what, patience)

    @contextmanager
    def call(self, call: Call, what: str, patience: Patience) -> Iterator[httpx.Response]:
        """Send a request and yield the answer, whose body is still to be read.

        Answers of 400 and above raise HostFailure, as do connections that fail, also while the block reads. The head
        arrives while there is patience, however slowly a server sends it.
        """
        response: httpx.Response | None = None
        try:
            with patience.bounded(self._connections.hang_up):
                response = self._authorized(call, what)
            if response.status_code >= 400:
                self._read_small(response)
                raise from_response(response, what, self.origin, self.account)
            if call.method == "HEAD":
                _pass_over(response)
            yield response
        # ValueError: a number in a header that Python refuses to read for its length.
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            raise from_transport(error, what, self.origin) from error
        finally:
            if response is not None:
                response.close()

    def _authorized(self, call: Call, what: str) -> httpx.Response:
        left = ATTEMPTS
        while left:
            known, used = self.account.known, self.authorizer.value(what)
            response = self._follow(call, what, used)
            # Whoever a redirect led to has no say in where our credentials go (CVE-2020-15157).
            if response.status_code != 401 or not self._is_ours(response.url):
                return response
            self._read_small(response)
            if not self.authorizer.answer(response, used, what):
                return response
            response.close()
            # Other credentials are worth as many attempts as the first.
            left = left - 1 if self.account.known is known else ATTEMPTS - 1
        return response

    def _follow(self, call: Call, what: str, authorization: str) -> httpx.Response:
        """Send and follow redirects; whoever else is sent to sees neither credentials nor configured headers."""
        url = self._url(call)
        origin: tuple[str, str, int | None] | None = _origin(url)
        foreign = [("user-agent", _USER_AGENT), *_PLAIN.items(), *call.headers.items()]
        request = call.to(url, self._headers(call, authorization) if self._is_ours(url) else foreign)
        for _ in range(REDIRECTS):
            response = self._send(request)
            target = response.headers.get("location")
            if response.status_code not in _MOVED or not target:
                return response
            _pass_over(response)
            url = request.url.join(target)
            if url.scheme not in ("http", "https"):
                break
            if _origin(url) == origin:
                request = call.to(url, request.headers)
            else:
                origin = None  # even on the way back: the registry did not write that address
                request = call.to(url, foreign)
        raise HostFailure(FailedPrecondition(f"{what}: {self.origin} redirects in a circle or to nowhere"))

    def _is_ours(self, url: httpx.URL) -> bool:
        return _origin(url) == _origin(httpx.URL(self.origin))

    def _url(self, call: Call) -> httpx.URL:
        url = httpx.URL(f"{self.origin}{self.host.path}/{self._repository}/{call.path}")
        if call.location:
            url = self._onward(url.join(call.location))
        query = dict(call.query)
        if self._is_ours(url) and not self.host.serves(self._namespace):
            query["ns"] = self._namespace
        return url.copy_merge_params(query) if query else url

    def _onward(self, url: httpx.URL) -> httpx.URL:
        """Check where a registry wants an upload to go on: bytes that went out encrypted stay so.

        Behind a proxy that ends TLS many a registry believes that it is spoken to over http.
        """
        if self._scheme == "https" and url.scheme == "http" and url.netloc.decode("ascii") == self.host.host:
            url = url.copy_with(scheme="https")
        if url.scheme != "https" and url.scheme != self._scheme:
            raise httpx.InvalidURL(f"goes on at a {url.scheme[:20]!r} address")
        return url

    def _headers(self, call: Call, authorization: str) -> list[tuple[str, str]]:
        pairs = [("user-agent", _USER_AGENT), *_PLAIN.items(), *call.headers.items()]
        own = {name.lower() for name, _ in self.host.header}
        if authorization and "authorization" not in own:
            pairs.append(("authorization", authorization))
        return [pair for pair in pairs if pair[0].lower() not in own] + list(self.host.header)

    def _send(self, request: httpx.Request) -> httpx.Response:
        seen: set[str] = set()
        request.headers.setdefault("host", request.url.netloc.decode("ascii"))
        try:
            return self._connections.send(request, seen.add)
        except httpx.TransportError as error:
            hung = isinstance(error, httpx.ConnectTimeout) and "connection.start_tls.started" in seen
            ours = request.url.scheme == "https" and request.url.netloc.decode("ascii") == self.host.host
            if not (self.host.http_fallback and ours and (hung or self._has_no_tls(error))):
                raise
            logger.debug("%s does not speak TLS, going on with http: %s", self.host.host, error)
        self._scheme = "http"
        plain = httpx.Request(
            request.method,
            request.url.copy_with(scheme="http"),
            headers=request.headers,
            stream=request.stream,
        )
        return self._connections.send(plain)

    def _has_no_tls(self, error: Exception) -> bool:
        """Whether a failed connection shows that only http can work (containerd, HTTPFallback).

        A certificate that does not pass is no reason to go on without any, nor is a connection that is cut. Without a
        port the two schemes are two doors, and the other one may be open.
        """
        closed = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and ":" not in self.host.host
        return is_no_tls(error) or (closed and not is_tls(error))

    def _send_whole(self, request: httpx.Request) -> httpx.Response:
        """Send a token request, whose realm may be anywhere, and read the answer."""
        request.headers.update({"user-agent": _USER_AGENT, **_PLAIN})
        if self._is_ours(request.url):
            request.headers.update([pair for pair in self.host.header if pair[0].lower() != "authorization"])
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


#: Bytes are wanted as they are stored: a digest covers no transfer encoding of a proxy's choice.
_PLAIN = {"accept-encoding": "identity"}


def _pass_over(response: httpx.Response) -> None:
    """End an answer that nobody reads, in such a way that its connection serves the next request if that costs little.

    Each new one costs two or three round trips, and many registries answer each blob by a redirect.
    """
    length = response.headers.get("content-length", "")
    if response.request.method == "HEAD" or (length.isdecimal() and len(length) < 5 and int(length) <= _SHORT_BODY):
        with suppress(httpx.HTTPError):  # whoever cuts a body short is asked for nothing else on this connection
            for _ in response.iter_raw():
                pass
    response.close()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
