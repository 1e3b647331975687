"""Port-forward over all transports: a real server, the fake shim, sockets on loopback as the pod."""

import base64
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from stream_svc import portforward, websocket
from stream_svc.spdy_events import Status
from support.fake_shim import FakeShim
from support.stream_clients import RefusedError, SpdyClient, WebSocketClient, dial, upgrade
from support.stream_server import RunningServer

PROTOCOL = "portforward.k8s.io"


@contextlib.contextmanager
def pod(serve: Callable[[socket.socket], None], connections: int = 1) -> Iterator[int]:
    """Serve so many connections in a thread; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def loop() -> None:
            for _ in range(connections):
                made, _ = listener.accept()
                made.settimeout(10)
                with made:
                    serve(made)

        thread = threading.Thread(target=loop)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(60)


def answer_at_the_end(sock: socket.socket) -> None:
    """Answer once the client has said everything."""
    received = b""
    while data := sock.recv(65536):
        received += data
    sock.sendall(received[::-1])


def open_pair(client: SpdyClient, port: int, request: str = "1") -> tuple[int, int]:
    """Open error and data stream, as client-go does."""
    error = client.open(streamType="error", port=str(port), requestID=request)
    return error, client.open(streamType="data", port=str(port), requestID=request)


def test_half_close_by_the_client(server: RunningServer, shim: FakeShim) -> None:
    """The client's FIN reaches the pod, whose answer still comes back."""
    with (
        pod(answer_at_the_end) as port,
        SpdyClient(server.port, f"/portforward/{shim.port_forward(port)}", PROTOCOL) as client,
    ):
        error, data = open_pair(client, port)
        client.send(error, b"", fin=True)
        client.send(data, b"abc" * 100_000, fin=True)

        assert client.finished(data) == b"cba" * 100_000
        assert client.finished(error) == b""


def test_half_close_by_the_pod(server: RunningServer, shim: FakeShim) -> None:
    """The pod's end reaches the client, which may go on sending."""
    got: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(b"greeting")
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(65536):
            got.append(data)

    with pod(serve) as port, SpdyClient(server.port, f"/portforward/{shim.port_forward(port)}", PROTOCOL) as client:
        error, data = open_pair(client, port)
        assert client.finished(data) == b"greeting"
        assert client.finished(error) == b""
        client.send(data, b"still ", fin=False)
        client.send(data, b"here", fin=True)
    assert b"".join(got) == b"still here"


def test_several_connections_at_once(server: RunningServer, shim: FakeShim) -> None:
    """Pairs belong together by request id, whatever the order of the streams; one connect each."""
    with (
        pod(answer_at_the_end, 3) as port,
        SpdyClient(server.port, f"/portforward/{shim.port_forward(port)}", PROTOCOL) as client,
    ):
        headers = {"port": str(port)}
        streams = {
            (kind, request): client.open(streamtype=kind, requestid=request, **headers)
            for kind, request in [("error", "a"), ("error", "b"), ("data", "b"), ("data", "c"), ("data", "a")]
        }
        streams["error", "c"] = client.open(streamtype="error", requestid="c", **headers)
        for request in "abc":
            client.send(streams["data", request], f"<{request}".encode(), fin=True)

        for request in "abc":
            assert client.finished(streams["data", request]) == f"{request}<".encode()
        assert shim.connects == [port] * 3


def test_a_request_id_may_be_used_again(server: RunningServer, shim: FakeShim) -> None:
    """Once its pair is complete."""
    with (
        pod(answer_at_the_end, 2) as port,
        SpdyClient(server.port, f"/portforward/{shim.port_forward(port)}", PROTOCOL) as client,
    ):
        for _ in range(2):
            _, data = open_pair(client, port, "same")
            client.send(data, b"x", fin=True)
            assert client.finished(data) == b"x"


def test_an_old_client_sends_no_request_ids(server: RunningServer, shim: FakeShim) -> None:
    """Then a data stream belongs to the error stream just before it."""
    with (
        pod(answer_at_the_end, 2) as port,
        SpdyClient(server.port, f"/portforward/{shim.port_forward(port)}", PROTOCOL) as client,
    ):
        for text in (b"12", b"34"):
            client.open(streamtype="error", port=str(port))
            data = client.open(streamtype="data", port=str(port))
            client.send(data, text, fin=True)
            assert client.finished(data) == text[::-1]


def test_a_port_that_nobody_listens_on(server: RunningServer, shim: FakeShim) -> None:
    """The shim's reason is on the error stream, the data stream is reset, the session goes on."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    with (
        pod(answer_at_the_end) as port,
        SpdyClient(server.port, f"/portforward/{shim.port_forward()}", PROTOCOL) as client,
    ):
        error, data = open_pair(client, closed)
        assert b"Connection refused" in client.finished(error)
        client.until(lambda: client.streams[data].reset)

        _, data = open_pair(client, port, "2")
        client.send(data, b"ok", fin=True)
        assert client.finished(data) == b"ko"


@pytest.mark.parametrize(
    "headers",
    [
        {"streamtype": "data"},
        {"streamtype": "data", "port": "0"},
        {"streamtype": "data", "port": "65536"},
        {"streamtype": "data", "port": "eighty"},
        {"streamtype": "data", "port": "٨٠"},
        {"port": "80"},
        {"streamtype": "stdin", "port": "80"},
    ],
)
def test_streams_that_make_no_sense(server: RunningServer, shim: FakeShim, headers: dict[str, str]) -> None:
    """Are reset."""
    with SpdyClient(server.port, f"/portforward/{shim.port_forward()}", PROTOCOL) as client:
        stream = client.open(**headers)

        assert client.streams[stream].reset


def test_a_second_stream_of_one_kind(server: RunningServer, shim: FakeShim) -> None:
    """Is reset, as is one that names another port; the pair lives."""
    with (
        pod(answer_at_the_end) as port,
        SpdyClient(server.port, f"/portforward/{shim.port_forward()}", PROTOCOL) as client,
    ):
        client.open(streamtype="error", port=str(port), requestid="1")
        second = client.open(streamtype="error", port=str(port), requestid="1")
        other = client.open(streamtype="data", port="9", requestid="1")
        data = client.open(streamtype="data", port=str(port), requestid="1")
        client.send(data, b"ab", fin=True)

        assert client.streams[second].reset
        assert client.streams[other].reset
        assert client.finished(data) == b"ba"


def test_half_a_pair(server: RunningServer, shim: FakeShim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is given up after the time limit, with a word on the error stream if that is the half there is."""
    monkeypatch.setattr(portforward, "PAIR_LIMIT", 0.1)
    with SpdyClient(server.port, f"/portforward/{shim.port_forward()}", PROTOCOL) as client:
        error = client.open(streamtype="error", port="80", requestid="1")
        data = client.open(streamtype="data", port="80", requestid="2")

        assert b"timed out" in client.finished(error)
        client.until(lambda: client.streams[data].reset)


def test_a_reset_closes_the_pods_connection(server: RunningServer, shim: FakeShim) -> None:
    """client-go resets the data stream when its user has gone."""
    ended = threading.Event()

    def serve(sock: socket.socket) -> None:
        sock.sendall(b"hello")
        assert sock.recv(100) == b""
        ended.set()

    with pod(serve) as port, SpdyClient(server.port, f"/portforward/{shim.port_forward(port)}", PROTOCOL) as client:
        error, data = open_pair(client, port)
        client.until(lambda: client.streams[data].data)
        client.spdy.reset(data, Status.CANCEL)
        client.flush()

        assert ended.wait(30)
        assert client.finished(error) == b""


def test_streams_that_are_reset_count(server: RunningServer, shim: FakeShim, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that opens streams and resets them at once cannot have any number of connections waited for."""
    monkeypatch.setattr(portforward, "CONNECTION_LIMIT", 3)
    with SpdyClient(server.port, f"/portforward/{shim.port_forward(80)}", PROTOCOL) as client:
        for number in range(5):
            stream = client.open(streamType="error", port="80", requestID=str(number))
            assert client.streams[stream].reset == (number >= 3)
            client.spdy.reset(stream, Status.CANCEL)
            client.flush()


def test_a_hang_up_closes_the_pods_connections(server: RunningServer, shim: FakeShim) -> None:
    """All of them."""

    def serve(sock: socket.socket) -> None:
        assert sock.recv(100) == b""

    with pod(serve) as port, SpdyClient(server.port, f"/portforward/{shim.port_forward(port)}", PROTOCOL) as client:
        open_pair(client, port)


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""])
def test_websocket_channels(server: RunningServer, shim: FakeShim, protocol: str) -> None:
    """Channels 2n and 2n+1 belong to the n-th port and begin with it; the close comes when all have ended."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(sock.recv(100)[::-1])

    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    with pod(serve) as port:
        token = shim.port_forward(port, closed)
        with WebSocketClient(server.port, f"/portforward/{token}", protocol) as client:
            client.send(0, b"abc")

            assert client.closed() == websocket.NORMAL
            assert client.channel(0) == struct.pack("<H", port) + b"cba"
            assert client.channel(1) == struct.pack("<H", port)
            assert client.channel(2) == struct.pack("<H", closed)
            assert b"Connection refused" in client.channel(3)


def test_websocket_without_ports(server: RunningServer, shim: FakeShim) -> None:
    """Has nothing to open channels for."""
    with pytest.raises(RefusedError) as caught:
        WebSocketClient(server.port, f"/portforward/{shim.port_forward()}", "v4.channel.k8s.io")

    assert caught.value.status == 400


class TunnelClient(SpdyClient):
    """SPDY inside WebSocket messages."""

    def __init__(self, port: int, path: str) -> None:
        self.ws = websocket.Connection(client=True)
        sock = dial(port)
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": "SPDY/3.1+portforward.k8s.io",
        }
        self.head, rest = upgrade(sock, path, headers)
        self._start(sock, rest)

    def flush(self) -> None:
        """Wrap what SPDY wants sent."""
        if data := self.spdy.take():
            self.ws.send(data)
        self.sock.sendall(self.ws.take())

    def take(self, data: bytes) -> None:
        """Unwrap before SPDY sees it."""
        for event in self.ws.receive_data(data):
            if isinstance(event, websocket.Piece):
                super().take(event.data)


def test_tunnel(server: RunningServer, shim: FakeShim) -> None:
    """SPDY's frames in binary messages, cut anywhere."""
    with pod(answer_at_the_end) as port, TunnelClient(server.port, f"/portforward/{shim.port_forward(port)}") as client:
        assert "SPDY/3.1+portforward.k8s.io" in client.head
        error, data = open_pair(client, port)
        client.send(data, b"abc" * 50_000, fin=True)

        assert client.finished(data) == b"cba" * 50_000
        assert client.finished(error) == b""
        client.ws.close()
        client.flush()
        client.drain()
