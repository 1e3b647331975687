"""The stream-svc process itself: started as its launcher starts it, without privileges, asked over gRPC and HTTP."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulkhead import paths, rpc
from bulkhead.proto import streams_pb2, streams_pb2_grpc
from support.fake_shim import FakeShim
from support.ports import free_port
from support.stream_clients import SpdyClient

pytestmark = pytest.mark.root

#: nobody's uid: the service needs no user of its own to be tried without privileges.
UID = 65534


@dataclass
class Service:
    """A running process."""

    process: "subprocess.Popen[bytes]"
    state: Path
    metrics: int

    def address(self) -> str:
        """Ask for the base URL, waiting for the start."""
        with rpc.channel(str(paths.service_socket(self.state, "stream-svc"))) as channel:
            stub = streams_pb2_grpc.StreamsStub(channel)
            request = streams_pb2.AddressRequest()
            return str(rpc.call(stub.Address, request, service="stream-svc", timeout=60).base_url)

    def sessions(self) -> list[streams_pb2.Session]:
        """Ask for the open sessions."""
        with rpc.channel(str(paths.service_socket(self.state, "stream-svc"))) as channel:
            stub = streams_pb2_grpc.StreamsStub(channel)
            request = streams_pb2.SessionsRequest()
            return list(rpc.call(stub.Sessions, request, service="stream-svc", timeout=30).sessions)

    def get(self, path: str) -> str:
        """Ask the metrics face."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def port(self) -> int:
        """Return the port in the base URL."""
        return int(self.address().rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def started(directory: Path, streaming: str = "") -> Iterator[Service]:
    """Start the process as an unprivileged user in a state directory as the launcher makes it."""
    state, metrics = directory / "io.bulkhead", free_port()
    own = state / "stream-svc"
    own.mkdir(parents=True, exist_ok=True)
    os.chown(own, UID, UID)
    config = directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}"\n'
        f"[bulkhead.metrics_ports]\nstream-svc = {metrics}\n"
        f'[plugins."io.containerd.grpc.v1.cri"]\n{streaming}\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_svc", "--config", str(config)],
        user=UID,
        group=UID,
        extra_groups=[],
        cwd="/",
        stdin=subprocess.DEVNULL,
    )
    try:
        yield Service(process, state, metrics)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short directory that an unprivileged user may search."""
    made = Path(f"/tmp/bulkhead-stream-{os.getpid()}")
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def shim(directory: Path) -> Iterator[FakeShim]:
    """The fake shim, its socket open to the group of the service."""
    fake = FakeShim(directory / "io.bulkhead")
    os.chown(paths.stream_socket(fake.state, f"{fake.directory.name}-"), 0, UID)
    yield fake
    fake.close()


def test_a_session_from_start_to_stop(directory: Path, shim: FakeShim) -> None:
    """The process says where it is, serves, lists, counts, is ready, and ends its sessions at SIGTERM."""
    with started(directory) as service:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", service.address())
        assert service.get("/healthz") == "ok\n"
        assert service.get("/readyz") == "ok\n"
        token = shim.exec(lambda p: p.write(b"up") or int(p.gone.wait(60)))
        with SpdyClient(service.port(), f"/exec/{token}") as client:
            streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]
            client.until(lambda: client.streams[streams[1]].data)
            (session,) = service.sessions()
            assert (session.kind, session.transport, session.sent) == ("exec", "spdy", 2)
            assert 'bulkhead_stream_sessions{kind="exec",transport="spdy"} 1.0' in service.get("/metrics")

            service.process.send_signal(signal.SIGTERM)

            assert b"stopping" in client.finished(streams[0])
        assert service.process.wait(30) == 0
        assert shim.processes[0].gone.wait(30)


def test_a_kill_reaches_the_processes(directory: Path, shim: FakeShim) -> None:
    """The kernel hangs up for a service that cannot; the next one has the same address, and old tickets are good."""
    waiting = shim.exec(lambda p: p.write(b"later"))
    with started(directory) as service:
        port = service.port()
        token = shim.exec(lambda p: p.write(b"up") or int(p.gone.wait(60)))
        with SpdyClient(port, f"/exec/{token}") as client:
            streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]
            client.until(lambda: client.streams[streams[1]].data)
            service.end(signal.SIGKILL)
            assert shim.processes[0].gone.wait(30)
    with started(directory) as service:
        assert service.port() == port
        with SpdyClient(port, f"/exec/{waiting}") as client:
            streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]
            assert client.finished(streams[1]) == b"later"
        assert service.end() == 0


def test_tls_and_all_addresses(directory: Path) -> None:
    """Without an address the node's own is told, over https if so configured; SIGHUP is survived."""
    with started(directory, 'stream_server_address = ""\nenable_tls_streaming = true') as service:
        assert re.fullmatch(r"https://(\d+\.\d+\.\d+\.\d+|\[.+\]):\d+", service.address())
        service.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert service.process.poll() is None
        assert service.end(signal.SIGINT) == 0


def test_a_port_in_use(directory: Path) -> None:
    """Is one line of reason and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started(directory, f'stream_server_port = "{port}"') as service:
            assert service.process.wait(60) == 1


def test_idle_memory_is_small(directory: Path, shim: FakeShim) -> None:
    """The process alone has well below what a web framework would add, also after a hundred sessions."""
    with started(directory) as service:
        port = service.port()
        before = resident(service.process.pid)
        for _ in range(100):
            with SpdyClient(port, f"/exec/{shim.exec(lambda p: p.write(b'x' * 100_000))}") as client:
                streams = [client.open(streamtype=name) for name in ("error", "stdout", "stderr")]
                client.finished(streams[0])
        after = resident(service.process.pid)
        print(f"stream-svc: {before} KiB private at the start, {after} KiB after 100 sessions")

        assert before < 60_000
        assert after < before + 8_000


def resident(pid: int) -> int:
    """Return the private memory of a process in KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(value) for value in re.findall(r"Private_\w+:\s+(\d+) kB", rollup))
