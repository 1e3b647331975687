"""The server itself: heads, limits, TLS, idleness, the end."""

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bulkhead.config.model import Streaming
from bulkhead.errors import FailedPrecondition, InvalidArgument
from stream_svc import server as server_module
from stream_svc import sessions, tls, websocket
from support.fake_shim import NAME, FakeShim, Process
from support.stream_clients import RefusedError, SpdyClient, WebSocketClient, dial
from support.stream_server import RunningServer, ServerMaker

TOKEN = f"{NAME}-{'0' * 32}"


def ask(port: int, data: bytes) -> str:
    """Send bytes and return everything that comes back."""
    with dial(port) as sock:
        sock.sendall(data)
        received = b""
        while piece := sock.recv(65536):
            received += piece
        return received.decode()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (f"GET /exec/{TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400),
        (f"PUT /exec/{TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 431),
        (
            f"POST /exec/{TOKEN} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            "X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 3\r\n\r\nabc".encode(),
            400,
        ),
    ],
)
def test_requests_that_get_no_session(server: RunningServer, data: bytes, status: int) -> None:
    """Each gets its status, a reason as text, and the end of the connection."""
    answer = ask(server.port, data)

    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "Connection: close" in answer
    assert answer.partition("\r\n\r\n")[2]


def test_a_client_without_a_word(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is dropped after the time limit."""
    monkeypatch.setattr(server_module, "HEAD_TIMEOUT", 0.1)

    assert ask(server.port, b"GET /exec/") == ""


def test_data_right_behind_the_head(server: RunningServer, shim: FakeShim) -> None:
    """A client that does not wait for the 101 loses nothing."""
    with dial(server.port) as sock:
        spdy_client = SpdyClient.__new__(SpdyClient)
        spdy_client._start(sock, b"")
        for name in ("error", "stdout", "stderr"):
            spdy_client.spdy.open({"streamtype": name})
        head = (
            f"POST /exec/{shim.exec(lambda p: p.write(b'quick'))} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
        )
        sock.sendall(head.encode() + spdy_client.spdy.take())
        received = b""
        while b"quick" not in received:
            piece = sock.recv(65536)
            assert piece
            received += piece


def test_too_many_sessions(server: RunningServer, shim: FakeShim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are refused with 503 and a time to come again; readiness returns when they have gone."""
    monkeypatch.setattr(server_module, "SESSION_LIMIT", 1)
    token = shim.exec(lambda p: int(p.gone.wait(60)))
    with SpdyClient(server.port, f"/exec/{token}"):
        wait_for(lambda: bool(server.server.not_ready()))
        with pytest.raises(RefusedError) as caught:
            SpdyClient(server.port, f"/exec/{shim.exec(lambda p: 0)}")

        assert caught.value.status == 503
        assert "Retry-After" in caught.value.head
    wait_for(lambda: not server.server.not_ready())


def test_connections_without_a_ticket_take_no_sessions_place(
    server: RunningServer, shim: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers that connect and say nothing keep nobody out, and beyond a number of them are dropped."""
    monkeypatch.setattr(server_module, "SESSION_LIMIT", 1)
    monkeypatch.setattr(server_module, "CONNECTION_LIMIT", 4)
    silent = [dial(server.port) for _ in range(3)]
    with SpdyClient(server.port, f"/exec/{shim.exec(lambda p: int(p.gone.wait(60)))}"), dial(server.port) as further:
        assert further.recv(1) == b""
    for sock in silent:
        sock.close()


def test_a_shim_that_is_full(server: RunningServer, shim: FakeShim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own refusal is a 503, other errors of its are 500."""
    for code, status in ((8, 503), (14, 503), (13, 500)):
        monkeypatch.setattr(shim, "answer", {"error": {"code": code, "message": "not now"}})
        with pytest.raises(RefusedError, match="not now") as caught:
            SpdyClient(server.port, f"/exec/{shim.exec(lambda p: 0)}")
        assert caught.value.status == status


def test_a_shim_that_dies(server: RunningServer, shim: FakeShim) -> None:
    """The client is told."""
    token = shim.exec(lambda p: int(p.gone.wait(60)))
    with SpdyClient(server.port, f"/exec/{token}") as client:
        streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]
        shim.hang_up()

        assert "closed the session" in json.loads(client.finished(streams[0]))["message"]


def test_a_shim_that_gives_a_client_up(server: RunningServer, shim: FakeShim) -> None:
    """Its reason reaches the client."""
    token = shim.exec(lambda p: int(p.gone.wait(60)), kind="attach")
    with SpdyClient(server.port, f"/attach/{token}") as client:
        streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]
        wait_for(lambda: bool(shim.processes))
        shim.hang_up("the client reads too slowly and was cut off")

        assert "too slowly" in json.loads(client.finished(streams[0]))["message"]


def test_an_idle_session_ends(make_server: ServerMaker, shim: FakeShim) -> None:
    """With the reason on its error stream, and its process is killed; one that moves stays."""
    running = make_server(idle=1.0)

    def program(process: Process) -> int:
        for _ in range(5):
            time.sleep(0.25)
            process.write(b".")
        return int(process.gone.wait(60))

    with SpdyClient(running.port, f"/exec/{shim.exec(program)}") as client:
        streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]

        assert b"stream_idle_timeout" in client.finished(streams[0])
        assert client.finished(streams[1]) == b"....."
    assert shim.processes[0].gone.wait(30)


def test_stopping(server: RunningServer, shim: FakeShim) -> None:
    """Sessions of both transports are told, their processes killed, new connections refused."""
    spdy_token, websocket_token = (shim.exec(lambda p: p.write(b"up") or int(p.gone.wait(60))) for _ in range(2))
    with SpdyClient(server.port, f"/exec/{spdy_token}") as client:
        streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]
        with WebSocketClient(server.port, f"/exec/{websocket_token}") as other:
            client.until(lambda: client.streams[streams[1]].data)
            other.until(lambda: other.channel(1))
            assert len(server.server.table.open) == 2
            began = time.monotonic()

            stopping = asyncio.run_coroutine_threadsafe(server.server.stop(), server.loop)
            assert b"stopping" in client.finished(streams[0])
            assert other.closed() == websocket.GOING_AWAY
            assert b"stopping" in other.channel(3)
            client.sock.close()
            other.sock.close()
            stopping.result(60)

    assert time.monotonic() - began < server_module.STOP_LIMIT
    assert all(process.gone.wait(30) for process in shim.processes)
    assert server.server.table.open == {}
    assert server.server.not_ready()
    with pytest.raises(ConnectionRefusedError):
        dial(server.port)


def test_sessions_are_listed_and_counted(server: RunningServer, shim: FakeShim) -> None:
    """With kind, transport and bytes; gone from the list when they end."""
    before = counted("exec", "spdy", "exit")
    token = shim.exec(lambda p: len(p.read()), stdin=True)
    with SpdyClient(server.port, f"/exec/{token}") as client:
        streams = {name: client.open(streamtype=name) for name in ("error", "stdin", "stdout", "stderr")}
        (entry,) = server.server.table.open.values()
        assert (entry.kind, entry.transport, entry.protocol, entry.shim) == ("exec", "spdy", "v4.channel.k8s.io", NAME)
        assert entry.peer.startswith("127.0.0.1:")
        client.send(streams["stdin"], b"12345")
        client.finished(streams["error"])
        assert entry.count()[0] == 5
        client.sock.close()

    wait_until_empty(server)
    assert counted("exec", "spdy", "exit") == before + 1


def counted(kind: str, transport: str, outcome: str) -> float:
    """Return the counter of ended sessions."""
    return float(sessions.ENDED.labels(kind, transport, outcome)._value.get())


def wait_until_empty(server: RunningServer) -> None:
    """Wait until no session is open."""
    wait_for(lambda: not server.server.table.open)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_nothing_is_left_open(server: RunningServer, shim: FakeShim) -> None:
    """After sessions of every kind of ending, the process has the descriptors that it had."""
    before = descriptors()
    for number in range(20):
        token = shim.exec(lambda p: p.write(p.read()), stdin=True, tty=number % 2 == 0)
        with SpdyClient(server.port, f"/exec/{token}") as client:
            names = ("error", "stdin", "stdout", "resize" if number % 2 == 0 else "stderr")
            streams = {name: client.open(streamtype=name) for name in names}
            if number % 3:
                client.send(streams["stdin"], b"x")
                client.finished(streams["error"])
        with pytest.raises(RefusedError):
            SpdyClient(server.port, f"/exec/{TOKEN}")
    wait_until_empty(server)
    limit = time.monotonic() + 60
    while descriptors() > before:
        assert time.monotonic() < limit, f"{descriptors()} descriptors, {before} before"
        time.sleep(0.05)


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def trusting() -> ssl.SSLContext:
    """Return a client's context that takes any certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def test_tls_with_a_certificate_of_its_own(make_server: ServerMaker, shim: FakeShim) -> None:
    """A session over TLS ends as one without; the certificate names the host."""
    running = make_server(tls=tls.context(Streaming(enable_tls_streaming=True), "127.0.0.1"))
    token = shim.exec(lambda p: p.write(b"x" * 1_000_000) or 3)
    with SpdyClient(running.port, f"/exec/{token}", tls=trusting()) as client:
        streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]

        assert len(client.finished(streams[1])) == 1_000_000
        assert json.loads(client.finished(streams[0]))["reason"] == "NonZeroExitCode"
        client.until(lambda: client.goaway)
    assert_plain_is_dropped(running.port)


def assert_plain_is_dropped(port: int) -> None:
    """A client without TLS gets nothing."""
    with dial(port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            assert b"HTTP" not in sock.recv(1000)
        except ConnectionResetError:
            return


def test_tls_with_the_configured_pair(tmp_path: Path, make_server: ServerMaker, shim: FakeShim) -> None:
    """The pair is used, verifies, and is loaded anew on demand."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_pair(cert, key)
    streaming = Streaming(enable_tls_streaming=True, tls_cert_file=str(cert), tls_key_file=str(key))
    context = tls.context(streaming, "127.0.0.1")
    assert context is not None
    running = make_server(tls=context)
    for _ in range(2):
        client = ssl.create_default_context(cafile=str(cert))
        # OpenSSL wants a CA's key usage here; ours signs itself and has none.
        client.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with pytest.raises(RefusedError, match="404"):
            SpdyClient(running.port, f"/exec/{TOKEN}", tls=client)
        write_pair(cert, key)
        tls.reload(context, streaming)


def write_pair(cert: Path, key: Path) -> None:
    """Write a fresh pair."""
    pem = tls._self_signed("127.0.0.1").decode()
    middle = pem.index("-----BEGIN CERTIFICATE-----")
    key.write_text(pem[:middle])
    cert.write_text(pem[middle:])


def test_tls_settings_that_cannot_work(tmp_path: Path) -> None:
    """Half a pair, and files that are none, are refused by name."""
    with pytest.raises(InvalidArgument, match="together"):
        tls.context(Streaming(enable_tls_streaming=True, tls_cert_file="/x"), "h")
    with pytest.raises(FailedPrecondition, match="/nowhere"):
        tls.context(Streaming(enable_tls_streaming=True, tls_cert_file="/nowhere", tls_key_file="/nowhere"), "h")
    assert tls.context(Streaming(), "h") is None


def test_connections_are_prepared(server: RunningServer, shim: FakeShim) -> None:
    """Small frames go at once, and a client whose machine is gone is found out by the kernel."""
    token = shim.exec(lambda p: int(p.gone.wait(60)))
    with SpdyClient(server.port, f"/exec/{token}") as client:
        client.open(streamtype="error")
        mine = [fd for fd in os.listdir("/proc/self/fd") if is_accepted(int(fd), server.port)]
        assert mine
        for fd in mine:
            with socket.socket(fileno=os.dup(int(fd))) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def is_accepted(fd: int, port: int) -> bool:
    """Tell whether a descriptor is a connection that the server accepted."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.getsockname()[1] == port and bool(sock.getpeername())
    except (OSError, IndexError, TypeError):
        return False
