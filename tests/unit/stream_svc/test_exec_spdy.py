"""Exec and attach over SPDY: a real server, the fake shim, a blocking client."""

import json
import os
import time
from collections.abc import Callable

import pytest

from stream_svc import command_streams
from support.fake_shim import FakeShim, Process
from support.stream_clients import RefusedError, SpdyClient
from support.stream_server import RunningServer, ServerMaker


def run(client: SpdyClient, *types: str) -> dict[str, int]:
    """Open the streams of a session."""
    return {name: client.open(streamtype=name) for name in types}


def status(client: SpdyClient, streams: dict[str, int]) -> dict[str, object]:
    """Return the v1.Status."""
    loaded: dict[str, object] = json.loads(client.finished(streams["error"]))
    return loaded


def echo(process: Process) -> int:
    """Copy input to output."""
    while data := process.read():
        process.write(data)
    return 0


def test_output_and_success(server: RunningServer, shim: FakeShim) -> None:
    """Both outputs arrive whole, every stream ends, the status is Success, the server closes."""

    def program(process: Process) -> int:
        process.write(b"to stdout")
        process.write(b"to stderr", error=True)
        return 0

    with SpdyClient(server.port, f"/exec/{shim.exec(program)}") as client:
        streams = run(client, "error", "stdout", "stderr")

        assert client.finished(streams["stdout"]) == b"to stdout"
        assert client.finished(streams["stderr"]) == b"to stderr"
        assert status(client, streams)["status"] == "Success"
        client.drain()
        assert client.goaway


def test_exit_code(server: RunningServer, shim: FakeShim) -> None:
    """A code other than 0 is a Failure with the cause ExitCode."""
    with SpdyClient(server.port, f"/exec/{shim.exec(lambda process: 42)}", method="GET") as client:
        streams = run(client, "error", "stdout", "stderr")

        said = status(client, streams)

        assert (said["status"], said["reason"]) == ("Failure", "NonZeroExitCode")
        assert said["details"] == {"causes": [{"reason": "ExitCode", "message": "42"}]}


def test_input_to_its_end(server: RunningServer, shim: FakeShim) -> None:
    """What the client sends arrives, FIN closes the process's input, the server ends the stream too."""
    with SpdyClient(server.port, f"/exec/{shim.exec(echo, stdin=True)}") as client:
        streams = run(client, "error", "stdin", "stdout", "stderr")
        client.send(streams["stdin"], b"one ")
        client.send(streams["stdin"], b"two", fin=True)

        assert client.finished(streams["stdout"]) == b"one two"
        assert status(client, streams)["status"] == "Success"
        assert client.finished(streams["stdin"]) == b""


def test_the_status_comes_after_all_output(server: RunningServer, shim: FakeShim) -> None:
    """A client that trusts the order of frames never loses the tail."""
    with SpdyClient(server.port, f"/exec/{shim.exec(lambda p: p.write(b'x' * 3_000_000) or 1)}") as client:
        streams = run(client, "error", "stdout", "stderr")
        client.until(lambda: client.streams[streams["error"]].data)

        assert len(client.streams[streams["stdout"]].data) == 3_000_000
        assert client.streams[streams["stdout"]].ended


def test_terminal(server: RunningServer, shim: FakeShim) -> None:
    """One pty for all, the first size before the start, later ones after it."""

    def program(process: Process) -> int:
        process.write(b"%d" % os.get_terminal_size(process.stdout).columns)
        process.resized.clear()
        assert process.resized.wait(30)
        process.write(b" %d" % os.get_terminal_size(process.stdout).columns)
        process.write(b" " + process.read())
        return 0

    token = shim.exec(program, tty=True, stdin=True)
    with SpdyClient(server.port, f"/exec/{token}") as client:
        streams = run(client, "error", "stdin", "stdout", "resize")
        client.send(streams["resize"], b'{"Width":80,"Height":24}\n')
        client.until(lambda: client.streams[streams["stdout"]].data)
        client.send(streams["resize"], b'{"Width":132,"Height":50}\n')
        client.send(streams["stdin"], b"typed")

        assert client.finished(streams["stdout"]) == b"80 132 typed"
        assert shim.processes[0].sizes == [(80, 24), (132, 50)]
        assert status(client, streams)["status"] == "Success"


def test_an_old_client_has_no_resize_stream(server: RunningServer, shim: FakeShim) -> None:
    """Version 2 does not wait for one and reports in plain text."""
    with SpdyClient(server.port, f"/exec/{shim.exec(lambda p: 3, tty=True)}", "v2.channel.k8s.io") as client:
        streams = run(client, "error", "stdout")

        assert client.finished(streams["error"]) == b"command terminated with non-zero exit code: 3"


def test_success_of_an_old_client_is_silence(server: RunningServer, shim: FakeShim) -> None:
    """Before version 4 any byte on the error stream is an error."""
    with SpdyClient(server.port, f"/exec/{shim.exec(lambda p: 0)}", "channel.k8s.io") as client:
        streams = run(client, "error", "stdout", "stderr")

        assert client.finished(streams["error"]) == b""


def test_a_process_that_does_not_start(server: RunningServer, shim: FakeShim) -> None:
    """The shim's reason is an InternalError."""
    with SpdyClient(server.port, f"/exec/{shim.failing('no such file: nonsense')}") as client:
        streams = run(client, "error", "stdout", "stderr")

        said = status(client, streams)

        assert said["reason"] == "InternalError"
        assert said["message"] == (
            "Internal error occurred: error executing command in container: no such file: nonsense"
        )


def test_attach(server: RunningServer, shim: FakeShim) -> None:
    """The container's exit code is no failure of the attachment; even a terminal comes as pipes."""
    token = shim.exec(lambda p: (p.write(p.read())) + 9, kind="attach", tty=True, stdin=True)
    with SpdyClient(server.port, f"/attach/{token}") as client:
        streams = run(client, "error", "stdin", "stdout", "resize")
        client.send(streams["resize"], b'{"Width":80,"Height":24}')
        client.send(streams["stdin"], b"typed")

        assert client.finished(streams["stdout"]) == b"typed"
        assert status(client, streams)["status"] == "Success"
        assert shim.processes[0].sizes == [(80, 24)]


def test_hang_up_reaches_the_shim(server: RunningServer, shim: FakeShim) -> None:
    """The client's death closes the control socket, within moments."""
    token = shim.exec(lambda p: int(p.gone.wait(60)))
    with SpdyClient(server.port, f"/exec/{token}") as client:
        run(client, "error", "stdout", "stderr")
        wait_for(lambda: bool(shim.processes))

    assert shim.processes[0].gone.wait(30)


def test_hang_up_of_a_client_whose_input_nobody_takes(server: RunningServer, shim: FakeShim) -> None:
    """A connection that is not read from, because the process reads nothing, is watched all the same."""
    token = shim.exec(lambda p: int(p.gone.wait(60)), stdin=True)
    with SpdyClient(server.port, f"/exec/{token}") as client:
        streams = run(client, "error", "stdin", "stdout", "stderr")
        client.send(streams["stdin"], b"x" * 500_000)
        time.sleep(0.2)

    assert shim.processes[0].gone.wait(30)


def test_input_waits_for_a_process_that_reads_slowly(server: RunningServer, shim: FakeShim) -> None:
    """Nothing is lost and not everything is taken at once."""

    def program(process: Process) -> int:
        time.sleep(0.5)
        count = 0
        while data := process.read(1_000_000):
            count += len(data)
        process.write(b"%d" % count)
        return 0

    with SpdyClient(server.port, f"/exec/{shim.exec(program, stdin=True)}") as client:
        streams = run(client, "error", "stdin", "stdout", "stderr")
        client.sock.settimeout(60)
        for _ in range(100):
            client.send(streams["stdin"], b"x" * 100_000)
        client.send(streams["stdin"], b"", fin=True)

        assert client.finished(streams["stdout"]) == b"10000000"


def test_output_waits_for_a_client_that_reads_slowly(server: RunningServer, shim: FakeShim) -> None:
    """The process is held back instead of the server's memory filling."""
    written: list[int] = []

    def program(process: Process) -> int:
        for _ in range(400):
            process.write(b"x" * 100_000)
            written.append(100_000)
        return 0

    with SpdyClient(server.port, f"/exec/{shim.exec(program)}") as client:
        streams = run(client, "error", "stdout", "stderr")
        time.sleep(0.5)
        held = sum(written)

        assert held < 20_000_000
        assert len(client.finished(streams["stdout"])) == 40_000_000


def test_a_child_that_keeps_the_output_open(make_server: ServerMaker, shim: FakeShim) -> None:
    """After the exit, an output that is quiet is given up at the drain limit; what was written is delivered."""
    server = make_server(drain=0.3)
    token = shim.exec(lambda p: p.write(b"last words"), leave_open=True)
    with SpdyClient(server.port, f"/exec/{token}") as client:
        streams = run(client, "error", "stdout", "stderr")
        began = time.monotonic()

        assert status(client, streams)["status"] == "Success"
        assert client.finished(streams["stdout"]) == b"last words"
        assert time.monotonic() - began < 25


def test_missing_streams(server: RunningServer, shim: FakeShim, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not open all of them is told, after the time limit, and the process never starts."""
    monkeypatch.setattr(command_streams, "CREATION_LIMIT", 0.2)
    with SpdyClient(server.port, f"/exec/{shim.exec(echo)}") as client:
        streams = run(client, "error", "stdout")

        client.drain()

        assert b"timed out" in client.streams[streams["error"]].data
        assert b"stderr" in client.streams[streams["error"]].data
    assert shim.processes == []


def test_streams_nobody_asked_for(server: RunningServer, shim: FakeShim) -> None:
    """Unknown types, second ones and late ones are reset; what the ticket does not give is accepted and unused."""
    with SpdyClient(server.port, f"/exec/{shim.exec(echo, stdin=True, stderr=False)}") as client:
        streams = run(client, "error", "nonsense", "stderr", "stdout")
        again = client.open(streamtype="stdout")
        streams |= run(client, "stdin")
        late = client.open(streamtype="stdin")

        assert client.streams[streams["nonsense"]].reset
        assert client.streams[again].reset
        assert client.streams[late].reset
        assert client.streams[streams["stderr"]].replied
        client.send(streams["stdin"], b"done", fin=True)
        assert client.finished(streams["stdout"]) == b"done"


def test_tickets(server: RunningServer, shim: FakeShim) -> None:
    """Unknown, used and foreign ones are all 404."""
    used = shim.exec(lambda p: 0)
    with SpdyClient(server.port, f"/exec/{used}"):
        pass
    elsewhere = "f" * 16 + "-" + "0" * 32
    for path in (f"/exec/{used}", f"/exec/{elsewhere}", f"/exec/{used[:17]}{'0' * 32}", "/other"):
        with pytest.raises(RefusedError) as caught:
            SpdyClient(server.port, path)
        assert caught.value.status == 404
    with pytest.raises(RefusedError) as caught:
        SpdyClient(server.port, f"/attach/{shim.exec(lambda p: 0)}")
    assert caught.value.status == 404


def test_a_reset_of_the_output_stream(server: RunningServer, shim: FakeShim) -> None:
    """A client may give one stream up; the rest goes on."""
    with SpdyClient(server.port, f"/exec/{shim.exec(echo, stdin=True)}") as client:
        streams = run(client, "error", "stdin", "stdout", "stderr")
        client.spdy.reset(streams["stderr"])
        client.send(streams["stdin"], b"on", fin=True)

        assert client.finished(streams["stdout"]) == b"on"
        assert status(client, streams)["status"] == "Success"


def test_a_protocol_error_ends_the_session(server: RunningServer, shim: FakeShim) -> None:
    """And kills the process; the server lives."""
    token = shim.exec(lambda p: int(p.gone.wait(60)))
    with SpdyClient(server.port, f"/exec/{token}") as client:
        run(client, "error", "stdout", "stderr")
        wait_for(lambda: bool(shim.processes))
        client.sock.sendall(b"\x80\x02" + bytes(20))

        assert shim.processes[0].gone.wait(30)
        client.drain()
    with SpdyClient(server.port, f"/exec/{shim.exec(lambda p: 0)}") as client:
        assert status(client, run(client, "error", "stdout", "stderr"))["status"] == "Success"


def wait_for(condition: Callable[[], bool], timeout: float = 60) -> None:
    """Wait until the condition holds."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
