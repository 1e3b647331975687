"""What went wrong at a host, and whether asking again can help."""

import email.utils
import json
import socket
import ssl
import time

import httpx

from bulkhead.errors import (
    BulkheadError,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from image_svc import quote
from image_svc.kubelet_errors import RegistryUnavailable
from image_svc.registry.credentials import Account

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
#: What OpenSSL, version for version, calls an answer that begins otherwise than TLS does.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"})
_KINDS: dict[int, type[BulkheadError]] = {
    400: FailedPrecondition,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    408: DeadlineExceeded,
    429: ResourceExhausted,
}


class HostFailure(Exception):
    """One host did not do what was asked; `error` is what the caller of the pull would be told."""

    def __init__(self, error: BulkheadError, *, retry: bool = False, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry = retry
        #: Seconds that the host asked to be left alone.
        self.after = after


def from_response(response: httpx.Response, what: str, host: str, account: Account) -> HostFailure:
    """Turn an HTTP error status into a failure; the registry's own words are quoted without our secrets."""
    status = response.status_code
    words = account.redact(_words(response))
    text = f"{what}: {host} answered {status} {response.reason_phrase}{f' ({words})' if words else ''}"
    if account.problem and status in (401, 403, 404):
        text += f"; {account.problem}"
    kind = _KINDS.get(status, FailedPrecondition if status < 500 else RegistryUnavailable)
    return HostFailure(kind(text), retry=status in _RETRIED, after=_retry_after(response))


def from_transport(error: Exception, what: str, host: str) -> HostFailure:
    """Turn a connection that failed into a failure that may be tried again, certificates excepted."""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return HostFailure(RegistryUnavailable(f"{what}: {host} sent nothing for too long"), retry=True)
    root = _root(error)
    # Neither a certificate nor a name that does not exist gets better within seconds.
    final = is_distrust(error) or (isinstance(root, socket.gaierror) and root.errno == socket.EAI_NONAME)
    return HostFailure(RegistryUnavailable(f"{what}: {host}: {_reason(error)}"), retry=not final)


def is_distrust(error: Exception) -> bool:
    """Whether a connection failed since the server's certificate did not pass."""
    return isinstance(_root(error), ssl.SSLCertVerificationError)


def is_tls(error: Exception) -> bool:
    """Whether a connection failed over TLS, once there was one."""
    return isinstance(_root(error), ssl.SSLError)


def is_no_tls(error: Exception) -> bool:
    """Whether a server answered the first message of TLS with something that is not TLS, such as an HTTP error."""
    root = _root(error)
    return isinstance(root, ssl.SSLError) and root.reason in _NOT_TLS


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection within the dial time-out"
    if isinstance(error, httpx.LocalProtocolError):
        # Whose own words quote the header: a password, or a token.
        return "not asked, since a header of the request holds what no header may"
    root = _root(error)
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    return f"connection broken: {str(root) or str(error) or type(root).__name__}"


def _root(error: BaseException) -> BaseException:
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _words(response: httpx.Response) -> str:
    """Return code and message of an OCI distribution error body, at most 300 characters on one line."""
    try:
        body = response.content
    except httpx.ResponseNotRead:
        return ""
    try:
        first = json.loads(body)["errors"][0]
        text = ": ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return ""
    return quote.one_line(text)[:300]


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds of a Retry-After header, which holds a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, IndexError, OverflowError):  # what the parser makes of nonsense
        return 0.0
