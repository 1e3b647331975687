"""Requests and what they ask for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_svc.upgrade import Headers, Refused, Request, Upgrade, plan

TOKEN = "0123456789abcdef-" + "ab" * 16
SPDY = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io"}
WEBSOCKET = {
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def request(path: str, headers: dict[str, str], method: str = "GET") -> Request:
    """Return a request with these headers."""
    return Request(method, path, [(name.lower().encode(), value.encode()) for name, value in headers.items()])


def header(headers: Headers, name: str) -> str:
    """Return a header of an answer."""
    return next(value.decode() for key, value in headers if key.decode() == name)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("path", "kind"), [("exec", "exec"), ("attach", "attach"), ("portforward", "port_forward")])
def test_spdy(method: str, path: str, kind: str) -> None:
    """The three kinds, by both methods; a query says nothing."""
    protocol = "portforward.k8s.io" if path == "portforward" else "v4.channel.k8s.io"
    asked = plan(request(f"/{path}/{TOKEN}?x=y", SPDY | {"X-Stream-Protocol-Version": protocol}, method))

    assert asked == Upgrade(kind, TOKEN, "spdy", protocol)
    assert header(asked.headers, "Upgrade") == "SPDY/3.1"
    assert header(asked.headers, "X-Stream-Protocol-Version") == protocol


def test_spdy_takes_the_first_protocol_that_both_know() -> None:
    """client-go offers v5 over SPDY too, where there is none."""
    offer = "v5.channel.k8s.io, v4.channel.k8s.io,v3.channel.k8s.io"

    asked = plan(request(f"/exec/{TOKEN}", SPDY | {"X-Stream-Protocol-Version": offer}))

    assert (asked.protocol, asked.version) == ("v4.channel.k8s.io", 4)


def test_protocols_in_several_headers() -> None:
    """Go sends one header a protocol."""
    pairs = [(b"x-stream-protocol-version", name) for name in (b"v9.channel.k8s.io", b"v2.channel.k8s.io")]
    headers = [(b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1"), *pairs]

    assert plan(Request("POST", f"/attach/{TOKEN}", headers)).version == 2


@pytest.mark.parametrize(
    ("protocol", "version", "base64"),
    [
        ("v5.channel.k8s.io", 5, False),
        ("v4.channel.k8s.io", 4, False),
        ("v4.base64.channel.k8s.io", 4, True),
        ("channel.k8s.io", 1, False),
        ("base64.channel.k8s.io", 1, True),
        ("", 1, False),
    ],
)
def test_websocket(protocol: str, version: int, base64: bool) -> None:
    """All subprotocols, and none; the accept value is RFC 6455's example."""
    headers = WEBSOCKET | ({"Sec-WebSocket-Protocol": protocol} if protocol else {})
    asked = plan(request(f"/exec/{TOKEN}", headers))

    assert (asked.transport, asked.protocol, asked.version, asked.base64) == ("websocket", protocol, version, base64)
    assert header(asked.headers, "Sec-WebSocket-Accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    if protocol:
        assert header(asked.headers, "Sec-WebSocket-Protocol") == protocol


def test_tunnel() -> None:
    """SPDY inside WebSocket messages, as kubectl port-forward asks for."""
    headers = WEBSOCKET | {"Sec-WebSocket-Protocol": "SPDY/3.1+portforward.k8s.io"}

    asked = plan(request(f"/portforward/{TOKEN}", headers))

    assert asked == Upgrade("port_forward", TOKEN, "tunnel", "portforward.k8s.io")
    assert header(asked.headers, "Sec-WebSocket-Protocol") == "SPDY/3.1+portforward.k8s.io"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/exec",
        "/exec/",
        "/run/" + TOKEN,
        "exec/" + TOKEN,
        f"/exec/{TOKEN}/more",
        f"//exec/{TOKEN}",
        f"/exec/{TOKEN}\n",
        f"/exec/{TOKEN.upper()}",
        "/exec/../../etc/passwd",
        "/exec/0123456789abcde/-" + "ab" * 16,
        "/exec/0123456789abcdef-" + "ab" * 15,
        "/exec/0123456789abcdef-" + "ab" * 65,
        "/exec/0123456789abcdef" + "ab" * 16,
        "/exec/%30123456789abcdef-" + "ab" * 16,
    ],
)
def test_anything_but_a_known_path_with_a_token_is_not_found(path: str) -> None:
    """The token becomes part of a socket's path."""
    with pytest.raises(Refused) as caught:
        plan(request(path, SPDY))

    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        ({}, "GET", 400),
        ({"Connection": "Upgrade"}, "GET", 400),
        ({"Upgrade": "SPDY/3.1"}, "GET", 400),
        (SPDY | {"Upgrade": "h2c"}, "GET", 400),
        (SPDY, "DELETE", 405),
        (SPDY | {"X-Stream-Protocol-Version": ""}, "GET", 400),
        (SPDY | {"X-Stream-Protocol-Version": "v9.channel.k8s.io"}, "GET", 403),
        (SPDY | {"X-Stream-Protocol-Version": "portforward.k8s.io"}, "GET", 403),
        (WEBSOCKET, "POST", 405),
        (WEBSOCKET | {"Sec-WebSocket-Version": "8"}, "GET", 426),
        (WEBSOCKET | {"Sec-WebSocket-Key": "short"}, "GET", 400),
        (WEBSOCKET | {"Sec-WebSocket-Key": "AAAA"}, "GET", 400),
        (WEBSOCKET | {"Sec-WebSocket-Protocol": "v9.channel.k8s.io"}, "GET", 403),
        (WEBSOCKET | {"Sec-WebSocket-Protocol": "SPDY/3.1+portforward.k8s.io"}, "GET", 403),
    ],
)
def test_refusals(headers: dict[str, str], method: str, status: int) -> None:
    """Each impossible request has its status."""
    with pytest.raises(Refused) as caught:
        plan(request(f"/exec/{TOKEN}", headers, method))

    assert caught.value.status == status


def test_a_refused_spdy_client_is_told_what_would_do() -> None:
    """In the header that client-go reads."""
    with pytest.raises(Refused) as caught:
        plan(request(f"/exec/{TOKEN}", SPDY | {"X-Stream-Protocol-Version": "x"}))

    accepted = [value for name, value in caught.value.headers if name == b"X-Accepted-Stream-Protocol-Versions"]
    assert accepted == [b"v4.channel.k8s.io", b"v3.channel.k8s.io", b"v2.channel.k8s.io", b"channel.k8s.io"]


@given(st.text(), st.text(), st.lists(st.tuples(st.binary(), st.binary())))
def test_any_request_is_planned_or_refused(method: str, target: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Nothing but Refused is raised."""
    for path in (target, f"/exec/{TOKEN}"):
        try:
            plan(Request(method, path, headers))
        except Refused:
            continue
