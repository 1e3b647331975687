"""client-go's own clients (those of kubectl, crictl and the kubelet) against stream-svc and a fake shim."""

import contextlib
import os
import re
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.build import build
from stream_svc.session import Limits
from support.fake_shim import FakeShim, Program, command
from support.stream_server import RunningServer

pytestmark = pytest.mark.root

TRANSPORTS = ("spdy", "websocket")
BIG = 20_000_000


@pytest.fixture(scope="module")
def client() -> str:
    """The compiled client."""
    return str(build("streamclient")["streamclient"])


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[FakeShim]:
    """The fake shim."""
    fake = FakeShim(tmp_path)
    yield fake
    fake.close()


@pytest.fixture
def url(tmp_path: Path, shim: FakeShim) -> Iterator[str]:
    """Base URL of a running server."""
    server = RunningServer(tmp_path, Limits(idle=120, drain=20))
    yield f"http://127.0.0.1:{server.port}"
    server.close()


def run(client: str, *arguments: str, input: bytes | None = None, timeout: float = 90) -> tuple[int, bytes, bytes]:
    """Run the client to its end; returns its code, stdout and stderr."""
    done = subprocess.run([client, *arguments], input=input, capture_output=True, timeout=timeout, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_copies_all_three_streams_and_the_exit_code(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """What kubectl exec -i needs: input to its end, both outputs, the code."""
    token = shim.exec(command("sh", "-c", "cat; echo problem >&2; exit 7"), stdin=True)

    code, out, err = run(
        client, "exec", f"-url={url}/exec/{token}", f"-transport={transport}", "-stdin", input=b"hello"
    )

    assert (code, out, err) == (7, b"hello", b"problem\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_success(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """A process that ends well ends the client well."""
    token = shim.exec(command("echo", "fine"))

    assert run(client, "exec", f"-url={url}/exec/{token}", f"-transport={transport}") == (0, b"fine\n", b"")


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"])
def test_every_spdy_protocol_version(client: str, shim: FakeShim, url: str, protocol: str) -> None:
    """Old clients get their output, and their errors as text."""
    arguments = [f"-protocols={protocol}", "-method=GET"]
    good, bad = shim.exec(command("echo", "fine")), shim.exec(command("sh", "-c", "exit 3"))

    assert run(client, "exec", f"-url={url}/exec/{good}", *arguments) == (0, b"fine\n", b"")
    code, _, err = run(client, "exec", f"-url={url}/exec/{bad}", *arguments)

    if protocol.startswith("v4"):
        assert code == 3
    elif protocol.startswith("v"):
        assert (code, b"non-zero exit code: 3" in err) == (250, True)


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"])
def test_every_websocket_protocol_version(client: str, shim: FakeShim, url: str, protocol: str) -> None:
    """Output arrives with all of them; codes with v4 and v5."""
    token = shim.exec(command("sh", "-c", "echo fine; exit 3"))

    code, out, err = run(client, "exec", f"-url={url}/exec/{token}", "-transport=websocket", f"-protocols={protocol}")

    assert out == b"fine\n"
    # The client of version 1 returns when the output or the error text ends, whichever it sees first.
    assert code in ([3] if protocol[0] == "v" else [0, 250]), err


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_terminal_has_the_first_size_and_follows(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """A program sees the first size at its start and later ones as they come."""
    script = "trap 'stty size; exit 0' WINCH; stty size; while :; do sleep 0.05; done"
    token = shim.exec(in_terminal(script), tty=True)
    arguments = [f"-transport={transport}", "-tty", "-sizes=80x24,100x30", "-await=24 80"]

    code, out, err = run(client, "exec", f"-url={url}/exec/{token}", *arguments)

    assert (code, out.split()) == (0, [b"24", b"80", b"30", b"100"]), err


def in_terminal(script: str) -> Program:
    """Return a program whose process has the pty as controlling terminal, so that SIGWINCH reaches it."""
    return command("setsid", "-c", "-w", "sh", "-c", script)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_large_output_arrives_whole(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """20 MB through pipe, server and client, not a byte lost at the end."""
    token = shim.exec(command("head", "-c", str(BIG), "/dev/zero"))

    code, out, _ = run(client, "exec", f"-url={url}/exec/{token}", f"-transport={transport}")

    assert (code, len(out)) == (0, BIG)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_large_input_arrives_whole(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """20 MB to a process that counts them; its end of input is seen."""
    token = shim.exec(command("wc", "-c"), stdin=True)

    code, out, _ = run(
        client, "exec", f"-url={url}/exec/{token}", f"-transport={transport}", "-stdin", input=bytes(BIG)
    )

    assert (code, int(out)) == (0, BIG)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_input_that_nobody_reads(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """A process that ends without reading its input ends the session all the same."""
    token = shim.exec(command("sh", "-c", "sleep 0.3; exit 5"), stdin=True)

    code, _, _ = run(client, "exec", f"-url={url}/exec/{token}", f"-transport={transport}", "-stdin", input=bytes(BIG))

    assert code == 5


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_attach(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """Attaching ends well whatever the container's code was."""
    token = shim.exec(command("sh", "-c", "cat; exit 9"), kind="attach", stdin=True)

    result = run(client, "exec", f"-url={url}/attach/{token}", f"-transport={transport}", "-stdin", input=b"typed")

    assert result == (0, b"typed", b"")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_process_that_cannot_start(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """The shim's reason reaches the user."""
    token = shim.failing('exec: "nonsense": executable file not found in $PATH')

    code, _, err = run(client, "exec", f"-url={url}/exec/{token}", f"-transport={transport}")

    assert code == 250
    assert b"executable file not found" in err


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_killed_client_kills_the_process(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """The hang-up reaches the shim, also of a process that never looks at its pipes."""
    token = shim.exec(command("sleep", "60"))
    running = subprocess.Popen(
        [client, "exec", f"-url={url}/exec/{token}", f"-transport={transport}"], stdin=subprocess.DEVNULL
    )
    wait_for(lambda: bool(shim.processes))

    running.kill()
    running.wait(30)

    assert shim.processes[0].gone.wait(30)


def test_a_ticket_works_once(client: str, shim: FakeShim, url: str) -> None:
    """The second use is 404."""
    token = shim.exec(command("true"))
    assert run(client, "exec", f"-url={url}/exec/{token}")[0] == 0

    code, _, err = run(client, "exec", f"-url={url}/exec/{token}")

    assert (code, b"unknown ticket" in err) == (250, True)


@contextlib.contextmanager
def forwarding(client: str, url: str, port: int) -> Iterator[int]:
    """Run the client's port-forward to a port of the pod; yields its local port."""
    running = subprocess.Popen(
        [client, "portforward", *url.split(), f"-ports=0:{port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdin
    assert running.stdout
    try:
        match = re.search(rb"127.0.0.1:(\d+)", running.stdout.readline())
        assert match, running.communicate(timeout=30)
        yield int(match[1])
    finally:
        running.stdin.close()
        running.wait(30)
        running.stdout.close()
        assert running.stderr
        running.stderr.close()


@contextlib.contextmanager
def pod_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve connections in threads; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=loop)
    accepting.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in [accepting, *threads]:
        thread.join(30)


def echo_after_end(connection: socket.socket) -> None:
    """Answer only when the client has said everything: works with half-close alone."""
    with connection:
        received = bytearray()
        while data := connection.recv(65536):
            received += data
        connection.sendall(bytes(received))


def converse(port: int, data: bytes) -> bytes:
    """Send, half-close, return the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while piece := sock.recv(65536):
            received += piece
        sender.join(30)
        return bytes(received)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_port_forward(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """Many connections side by side, half-closed by the client, answered by the pod."""
    with pod_server(echo_after_end) as pod:
        token = shim.port_forward(pod)
        with forwarding(client, f"-url={url}/portforward/{token} -transport={transport}", pod) as local:
            results: list[bytes] = []
            threads = [
                threading.Thread(target=lambda n=n: results.append(converse(local, b"%d" % n * 100_000)))
                for n in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)

            assert sorted(results) == [b"%d" % n * 100_000 for n in range(8)]
    assert shim.connects == [pod] * 8


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_port_forward_of_a_pod_that_speaks_first_and_closes(
    client: str, shim: FakeShim, url: str, transport: str
) -> None:
    """The pod's end reaches the client, which may come again."""

    def greet(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"220 ready\n")

    with pod_server(greet) as pod:
        token = shim.port_forward(pod)
        with forwarding(client, f"-url={url}/portforward/{token} -transport={transport}", pod) as local:
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", local), timeout=30) as sock:
                    received = bytearray()
                    while piece := sock.recv(100):
                        received += piece
                    assert bytes(received) == b"220 ready\n"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_port_forward_to_a_port_that_nobody_listens_on(client: str, shim: FakeShim, url: str, transport: str) -> None:
    """The client's connection ends, and its user is told why."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    token = shim.port_forward(port)
    running = subprocess.Popen(
        [client, "portforward", f"-url={url}/portforward/{token}", f"-transport={transport}", f"-ports=0:{port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout
    match = re.search(rb"127.0.0.1:(\d+)", running.stdout.readline())
    assert match

    with socket.create_connection(("127.0.0.1", int(match[1])), timeout=30) as sock:
        assert sock.recv(100) == b""

    # It is told beside the end of the connection, and no more once the client is told to end.
    err, deadline = b"", time.monotonic() + 30
    assert running.stderr
    while b"Connection refused" not in err and select.select([running.stderr], [], [], deadline - time.monotonic())[0]:
        err += os.read(running.stderr.fileno(), 65536)
    running.communicate(timeout=30)
    assert b"Connection refused" in err


def wait_for(condition: Callable[[], bool], timeout: float = 60) -> None:
    """Wait until the condition holds."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
