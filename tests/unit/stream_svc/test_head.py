"""Heads of requests, without sockets."""

import asyncio
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_svc.head import Head
from stream_svc.upgrade import Refused, Request, plan

TOKEN = "0123456789abcdef-" + "0" * 32
UPGRADE = (
    f"GET /exec/{TOKEN} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
)


class Writer:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.data += data


def handle(received: bytes) -> tuple[Request | None, bytes, bytes]:
    """Do with these bytes what the server does; returns the request, the answer and what follows the head."""

    async def run() -> tuple[Request | None, bytes, bytes]:
        reader, writer = asyncio.StreamReader(), Writer()
        reader.feed_data(received)
        reader.feed_eof()
        typed: Any = writer
        head = Head(reader, typed)
        try:
            request = await head.read()
            asked = plan(request)
            head.settle()
            rest = head.switch(asked.headers)
            return request, writer.data, rest
        except Refused as refused:
            head.refuse(refused)
        except EOFError:
            pass
        return None, writer.data, b""

    return asyncio.run(run())


def status(answer: bytes) -> int:
    """Return the status of an answer, which must be whole by itself."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    event = client.next_event()
    assert isinstance(event, h11.Response)
    return event.status_code


def test_what_follows_the_head_is_kept() -> None:
    """The first bytes of the new protocol may come with it."""
    request, answer, rest = handle(UPGRADE.encode() + b"\r\nspdy bytes")

    assert request is not None
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert rest == b"spdy bytes"


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        (UPGRADE + "Content-Length: 5\r\n\r\nhello", 400),
        (UPGRADE + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400),
        (UPGRADE.replace("GET", "OPTIONS") + "\r\n", 405),
        (UPGRADE.replace("GET", "HEAD") + "\r\n", 405),
        (UPGRADE.replace("GET", "PRI") + "\r\n", 405),
        ("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 404),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET / HTTP/1.0\r\n\r\n", 404),
        ("GET / HTTP/9.9\r\nHost: x\r\n\r\n", 404),
        (UPGRADE + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", 400),
        (UPGRADE + "Bad Header: x\r\n\r\n", 400),
        ("\x16\x03\x01 a TLS hello to a plain port\r\n\r\n", 400),
    ],
)
def test_odd_requests(request_text: str, expected: int) -> None:
    """Each gets a whole answer."""
    assert status(handle(request_text.encode("latin-1"))[1]) == expected


def test_an_upgrade_by_http_1_0() -> None:
    """Has no upgrades in the RFC; it is served all the same, as Go's server does."""
    answer = handle((UPGRADE.replace("HTTP/1.1", "HTTP/1.0") + "\r\n").encode())[1]

    assert answer.startswith(b"HTTP/1.1 101 ")


@given(st.binary(max_size=200), st.lists(st.text(max_size=20), max_size=5))
def test_any_head_is_answered_or_dropped(data: bytes, headers: list[str]) -> None:
    """Nothing but Refused and EOFError is raised."""
    handle(data)
    handle((UPGRADE + "\r\n".join(headers) + "\r\n\r\n").encode("utf-8", "replace"))
