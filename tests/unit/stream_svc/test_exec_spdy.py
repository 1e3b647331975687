"""Exec over SPDY: a real server, the fake shim, a blocking client."""

import json

from support.fake_shim import FakeShim, Process
from support.stream_clients import SpdyClient
from support.stream_server import RunningServer


def run(client: SpdyClient, *types: str) -> dict[str, int]:
    """Open the streams of an exec session."""
    return {name: client.open(streamtype=name) for name in types}


def status(client: SpdyClient, streams: dict[str, int]) -> dict[str, object]:
    """Return the v1.Status."""
    loaded: dict[str, object] = json.loads(client.finished(streams["error"]))
    return loaded


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
    with SpdyClient(server.port, f"/exec/{shim.exec(lambda process: 42)}") as client:
        streams = run(client, "error", "stdout", "stderr")

        said = status(client, streams)

        assert (said["status"], said["reason"]) == ("Failure", "NonZeroExitCode")
        assert said["details"] == {"causes": [{"reason": "ExitCode", "message": "42"}]}
        assert said["message"] == "command terminated with non-zero exit code: 42"
