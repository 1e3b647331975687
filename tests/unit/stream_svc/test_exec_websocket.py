"""Exec and attach over WebSocket: a real server, the fake shim, a blocking client."""

import json
import os

import pytest

from stream_svc import websocket
from support.fake_shim import FakeShim, Process
from support.stream_clients import RefusedError, WebSocketClient
from support.stream_server import RunningServer

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)


def echo(process: Process) -> int:
    """Copy input to output."""
    while data := process.read():
        process.write(data)
    return 0


def failing(process: Process) -> int:
    """Write to both outputs and fail."""
    process.write(b"out")
    process.write(b"err", error=True)
    return 4


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
def test_outputs_and_exit_code(server: RunningServer, shim: FakeShim, protocol: str) -> None:
    """Each on its channel, the v1.Status on the error channel, then a normal close."""
    with WebSocketClient(server.port, f"/exec/{shim.exec(failing)}", protocol) as client:
        assert client.closed() == websocket.NORMAL

        assert (client.channel(STDOUT), client.channel(STDERR)) == (b"out", b"err")
        assert json.loads(client.channel(ERROR))["details"] == {"causes": [{"reason": "ExitCode", "message": "4"}]}


@pytest.mark.parametrize("protocol", ["channel.k8s.io", "base64.channel.k8s.io", ""])
def test_old_protocols_report_in_text(server: RunningServer, shim: FakeShim, protocol: str) -> None:
    """As SPDY's versions before 4."""
    with WebSocketClient(server.port, f"/exec/{shim.exec(failing)}", protocol) as client:
        client.closed()

        assert client.channel(ERROR) == b"command terminated with non-zero exit code: 4"


def test_an_empty_message_tells_that_the_connection_stands(server: RunningServer, shim: FakeShim) -> None:
    """It comes before anything else, on stdout."""
    with WebSocketClient(server.port, f"/exec/{shim.exec(echo, stdin=True)}") as client:
        client.until(lambda: client.messages)

        assert client.channels == {}
        client.close_channel(STDIN)
        client.closed()


def test_v5_ends_the_input(server: RunningServer, shim: FakeShim) -> None:
    """The close signal closes the process's input; later input is dropped."""
    with WebSocketClient(server.port, f"/exec/{shim.exec(echo, stdin=True)}") as client:
        client.send(STDIN, b"all there is")
        client.close_channel(STDIN)
        client.send(STDIN, b"too late")

        assert client.closed() == websocket.NORMAL
        assert client.channel(STDOUT) == b"all there is"


def test_base64_both_ways(server: RunningServer, shim: FakeShim) -> None:
    """Bytes that are no text survive."""
    token = shim.exec(lambda p: p.write(p.read()), stdin=True)
    with WebSocketClient(server.port, f"/exec/{token}", "v4.base64.channel.k8s.io") as client:
        client.send(STDIN, bytes(range(256)))
        client.closed()

        assert client.channel(STDOUT) == bytes(range(256))


def test_terminal(server: RunningServer, shim: FakeShim) -> None:
    """Sizes come on channel 4."""

    def program(process: Process) -> int:
        process.write(b"%d" % os.get_terminal_size(process.stdout).lines)
        return 0

    token = shim.exec(program, tty=True)
    with WebSocketClient(server.port, f"/exec/{token}") as client:
        client.send(RESIZE, b'{"Width":80,"Height":33}')
        client.closed()

        assert client.channel(STDOUT) == b"33"


def test_attach(server: RunningServer, shim: FakeShim) -> None:
    """As over SPDY."""
    token = shim.exec(lambda p: (p.write(p.read())) + 9, kind="attach", stdin=True)
    with WebSocketClient(server.port, f"/attach/{token}") as client:
        client.send(STDIN, b"typed")
        client.closed()

        assert client.channel(STDOUT) == b"typed"
        assert json.loads(client.channel(ERROR))["status"] == "Success"


@pytest.mark.parametrize("polite", [True, False])
def test_hang_up_reaches_the_shim(server: RunningServer, shim: FakeShim, polite: bool) -> None:
    """With a close frame or without."""
    token = shim.exec(lambda p: p.write(b"up") or int(p.gone.wait(60)))
    with WebSocketClient(server.port, f"/exec/{token}") as client:
        client.until(lambda: client.channel(STDOUT))
        if polite:
            client.ws.close()
            client.flush()
            assert client.closed() == websocket.NORMAL
            client.drain()

    assert shim.processes[0].gone.wait(30)


def test_pings_are_answered_during_a_session(server: RunningServer, shim: FakeShim) -> None:
    """kubectl gives a connection up that does not answer for a minute."""
    with WebSocketClient(server.port, f"/exec/{shim.exec(echo, stdin=True)}") as client:
        client.ws.ping(b"there?")
        client.flush()
        raw = client.sock.recv(1000)
        while b"\x8a\x06there?" not in raw:
            raw += client.sock.recv(1000)


def test_nonsense_is_answered_with_its_close_code(server: RunningServer, shim: FakeShim) -> None:
    """And the process is killed."""
    token = shim.exec(lambda p: p.write(b"up") or int(p.gone.wait(60)))
    with WebSocketClient(server.port, f"/exec/{token}") as client:
        client.until(lambda: client.channel(STDOUT))
        client.sock.sendall(b"\xff\x80\x00\x00\x00\x00")

        assert client.closed() == websocket.PROTOCOL_ERROR
    assert shim.processes[0].gone.wait(30)


def test_a_channel_that_does_not_exist_is_dropped(server: RunningServer, shim: FakeShim) -> None:
    """As the kubelet's library does."""
    with WebSocketClient(server.port, f"/exec/{shim.exec(echo, stdin=True)}") as client:
        client.send(9, b"?")
        client.send(STDIN, b"fine")
        client.close_channel(STDIN)
        client.closed()

        assert client.channel(STDOUT) == b"fine"


def test_a_process_that_does_not_start(server: RunningServer, shim: FakeShim) -> None:
    """The shim's reason arrives."""
    with WebSocketClient(server.port, f"/exec/{shim.failing('no such file')}") as client:
        client.closed()

        assert "no such file" in json.loads(client.channel(ERROR))["message"]


def test_refusal(server: RunningServer, shim: FakeShim) -> None:
    """An unknown ticket and an unknown protocol get HTTP answers, and a refused protocol leaves the ticket good."""
    token = shim.exec(lambda p: 0)
    for path, protocol, status in (
        ("/exec/" + "0" * 16 + "-" + "0" * 32, "v5.channel.k8s.io", 404),
        (f"/exec/{token}", "v6.channel.k8s.io", 403),
    ):
        with pytest.raises(RefusedError) as caught:
            WebSocketClient(server.port, path, protocol)
        assert caught.value.status == status
    with WebSocketClient(server.port, f"/exec/{token}") as client:
        assert client.closed() == websocket.NORMAL
