"""HTTP and connection failures become errors that say what a user can act on."""

import email.utils
import socket
import ssl
import time

import httpx
import pytest

from bulkhead.errors import FailedPrecondition, Unavailable, Unknown
from image_svc.kubelet_errors import RegistryUnavailable
from image_svc.registry.credentials import Account
from image_svc.registry.failures import from_response, from_transport


def answer(status: int, body: bytes = b"", **headers: str) -> httpx.Response:
    """Return a response with its body read."""
    return httpx.Response(status, content=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize("date", [False, True])
def test_retry_after(date: bool) -> None:
    """Retry-After is seconds or a date."""
    value = email.utils.formatdate(time.time() + 300, usegmt=True) if date else "300"
    failure = from_response(answer(429, Retry_After=value), "what", "host", Account())

    assert 200 < failure.after <= 300
    assert failure.retry


@pytest.mark.parametrize("value", ["", "soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_retry_after_that_says_nothing(value: str) -> None:
    """What is neither, or lies in the past, is no wait."""
    assert from_response(answer(503, Retry_After=value), "w", "h", Account()).after == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no\\nway"}]}', "(DENIED: no way)"),
        (b'{"errors":[{"code":"DENIED"}]}', "(DENIED)"),
        (b'{"errors":[]}', ""),
        (b'{"errors":{"x":1}}', ""),
        (b"[1]", ""),
        (b"<html>", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_words_of_the_registry(body: bytes, words: str) -> None:
    """The registry's own words are quoted on one line, if it has any."""
    failure = from_response(answer(400, body), "what", "http://host", Account())

    assert str(failure) == f"what: http://host answered 400 Bad Request {words}".rstrip()
    assert isinstance(failure.error, FailedPrecondition)
    assert not failure.retry


def caused(outer: Exception, cause: Exception) -> Exception:
    """Return an error that another one caused."""
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "retry", "words"),
    [
        (httpx.ReadTimeout("t"), RegistryUnavailable, True, "sent nothing for too long"),
        (httpx.ConnectTimeout("t"), RegistryUnavailable, True, "dial time-out"),
        (caused(httpx.ConnectError("x"), ConnectionRefusedError(111, "refused")), RegistryUnavailable, True, "refused"),
        (
            caused(httpx.ConnectError("x"), socket.gaierror(socket.EAI_NONAME, "unknown name")),
            RegistryUnavailable,
            False,
            "unknown name",
        ),
        (
            caused(httpx.ConnectError("x"), socket.gaierror(socket.EAI_AGAIN, "try later")),
            RegistryUnavailable,
            True,
            "try later",
        ),
        (
            caused(httpx.ConnectError("x"), ssl.SSLCertVerificationError(1, "self-signed")),
            RegistryUnavailable,
            False,
            "self-signed",
        ),
        (httpx.RemoteProtocolError("peer closed"), RegistryUnavailable, True, "connection broken: peer closed"),
    ],
)
def test_connections(error: Exception, kind: type[Exception], retry: bool, words: str) -> None:
    """What broke is told; what cannot get better at once is not repeated."""
    failure = from_transport(error, "what", "http://host")

    assert type(failure.error) is kind
    assert failure.retry is retry
    assert words in str(failure)
    assert "what" in str(failure)
    assert "http://host" in str(failure)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_the_kubelet_knows_an_unavailable_registry(status: int) -> None:
    """A registry that cannot answer has the CRI's word at the beginning of its message, once, and the code UNKNOWN."""
    error = from_response(answer(status), "what", "http://host", Account()).error
    again = type(error)(str(error))

    assert isinstance(error, Unavailable)
    assert error.code == Unknown.code
    assert str(again).startswith("RegistryUnavailable: what: http://host")
    assert str(again).count("RegistryUnavailable") == 1


def test_a_header_that_cannot_be_sent_is_not_shown() -> None:
    """What the HTTP library says of a malformed header quotes it, and it may be a password."""
    with (
        pytest.raises(httpx.LocalProtocolError, match="s3cret") as raised,
        socket.create_server(("127.0.0.1", 0)) as own,
    ):
        httpx.get(f"http://127.0.0.1:{own.getsockname()[1]}/", headers={"authorization": "Bearer s3cret "}, timeout=5)
    failure = from_transport(raised.value, "pull", "https://host")

    assert "s3cret" not in str(failure)
    assert "a header of the request" in str(failure)
