"""Streams of a whole stack: client-go and crictl, both transports, the real shim, services killed meanwhile."""

import http.client
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.crictl import Crictl
from support.pods import Pods
from support.ports import free_port
from support.stack import Stack

pytestmark = pytest.mark.root

TRANSPORTS = ("spdy", "websocket")
#: Says its input back, and how it ends.
SERVER = "while true; do echo greetings | nc -l -p 8080; done & while read line; do echo got:$line; done"


@pytest.fixture(scope="module")
def client() -> str:
    """The compiled client."""
    return str(build("streamclient")["streamclient"])


@pytest.fixture(scope="module")
def stack(registry: str) -> Iterator[Stack]:
    """One stack for the module."""
    with Stack(registry, number=93) as running:
        running.image_service().PullImage(
            cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry}/busybox:1")), timeout=60
        )
        yield running


@pytest.fixture(scope="module")
def pods(stack: Stack, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Pods:
    """Makes pods."""
    return Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def pod(pods: Pods) -> Iterator[str]:
    """One pod for the module."""
    made = pods.run(pods.config("streams"))
    yield made
    pods.remove(made)


@pytest.fixture(scope="module")
def container(pods: Pods, pod: str) -> str:
    """One container for the module, with an input and a port."""
    return pods.start(pod, pods.config("streams"), "main", SERVER, stdin=True)


def exec_url(pods: Pods, container: str, *command: str, stdin: bool = False, tty: bool = False) -> str:
    """Ask for the URL of an exec session."""
    request = cri.ExecRequest(
        container_id=container, cmd=list(command), stdin=stdin, stdout=True, stderr=not tty, tty=tty
    )
    return str(pods.runtime.Exec(request, timeout=60).url)


def run(client: str, url: str, transport: str, *arguments: str, input: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Run the client to its end; returns its code, stdout and stderr."""
    command = [client, "exec", f"-url={url}", f"-transport={transport}", *arguments]
    done = subprocess.run(command, input=input, capture_output=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec(client: str, pods: Pods, container: str, transport: str) -> None:
    """Input, both outputs and the exit code."""
    url = exec_url(pods, container, "sh", "-c", "cat; echo problem >&2; exit 7", stdin=True)

    assert run(client, url, transport, "-stdin", input=b"hello") == (7, b"hello", b"problem\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_large_streams(client: str, pods: Pods, container: str, transport: str) -> None:
    """Ten megabytes in, and out again, to the last byte."""
    data = bytes(range(256)) * 40_000

    code, out, err = run(client, exec_url(pods, container, "cat", stdin=True), transport, "-stdin", input=data)

    assert (code, err) == (0, b"")
    assert out == data


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_terminal(client: str, pods: Pods, container: str, transport: str) -> None:
    """Both sizes that the client sends reach the terminal."""
    waits = [f"until stty size 2>/dev/null | grep -q '{size}'; do sleep 0.05; done" for size in ("24 80", "30 100")]
    url = exec_url(pods, container, "sh", "-c", f"{waits[0]}; echo first; {waits[1]}; echo second; tty", tty=True)

    code, out, err = run(client, url, transport, "-tty", "-sizes=80x24,100x30", "-await=first")

    assert (code, out.split()) == (0, [b"first", b"second", b"/dev/pts/0"]), err


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_cannot_be_executed(client: str, pods: Pods, container: str, transport: str) -> None:
    """The runtime's reason, or the shell's code for it, reaches the user."""
    code, _, err = run(client, exec_url(pods, container, "no-such-thing"), transport)

    assert code in (126, 127, 250)
    assert code != 250 or b"no-such-thing" in err


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_dead_client_takes_its_process_with_it(client: str, pods: Pods, container: str, transport: str) -> None:
    """Also one that never looks at its pipes."""
    url = exec_url(pods, container, "sleep", "7654")
    with subprocess.Popen([client, "exec", f"-url={url}", f"-transport={transport}"]) as running:
        wait_for(lambda: sleeps(pods, container) == 1)
        running.kill()

    wait_for(lambda: sleeps(pods, container) == 0)


def sleeps(pods: Pods, container: str) -> int:
    """Return how many of the long sleeps run in the container."""
    return pods.exec(container, "ps", "-o", "args").stdout.decode().count("sleep 7654")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until the condition holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_crictl_exec_attach_and_port_forward(
    stack: Stack, pod: str, container: str, tmp_path: Path, transport: str
) -> None:
    """The three kinds with the transport that crictl is told to use."""
    crictl = Crictl(stack.address, tmp_path)

    assert crictl("exec", "--transport", transport, container, "echo", "hi") == "hi"
    with crictl.spawn("attach", "--transport", transport, "-i", container) as attached:
        assert attached.stdin
        assert attached.stdout
        attached.stdin.write("ping\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == "got:ping\n"
    local = free_port()
    with crictl.spawn("port-forward", "--transport", transport, pod, f"{local}:8080") as forward:
        assert forward.stdout
        assert "Forwarding" in forward.stdout.readline()
        with socket.create_connection(("127.0.0.1", local), timeout=30) as sock:
            assert sock.recv(100) == b"greetings\n"


@pytest.mark.parametrize("service", ["cri-frontend", "image-svc", "sandbox-svc"])
def test_an_open_stream_outlives_every_other_service(
    stack: Stack, client: str, pods: Pods, container: str, service: str
) -> None:
    """The service is killed and comes back; the session goes on, and ends with its code."""
    url = exec_url(pods, container, "sh", "-c", "while read line; do echo $line; done; exit 5", stdin=True)
    with subprocess.Popen(
        [client, "exec", f"-url={url}", "-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as running:
        assert running.stdin
        assert running.stdout
        running.stdin.write("before\n")
        assert running.stdout.readline() == "before\n"

        old = stack.kill(service)
        running.stdin.write("meanwhile\n")
        assert running.stdout.readline() == "meanwhile\n"
        stack.wait_restarted(service, old)

        running.stdin.write("after\n")
        assert running.stdout.readline() == "after\n"
        running.stdin.close()
        assert running.wait(30) == 5


def test_the_death_of_stream_svc_ends_its_sessions(stack: Stack, client: str, pods: Pods, container: str) -> None:
    """Its processes are killed, the container lives, and the next session works."""
    url = exec_url(pods, container, "sleep", "7654")
    with subprocess.Popen([client, "exec", f"-url={url}"], stderr=subprocess.DEVNULL) as running:
        wait_for(lambda: sleeps(pods, container) == 1)
        old = stack.kill("stream-svc")
        # client-go over SPDY takes a lost connection for success.
        running.wait(30)
    wait_for(lambda: sleeps(pods, container) == 0)
    stack.wait_restarted("stream-svc", old)

    assert run(client, exec_url(pods, container, "echo", "again"), "spdy") == (0, b"again\n", b"")


def test_a_url_works_once(client: str, pods: Pods, container: str) -> None:
    """The second client gets 404."""
    url = exec_url(pods, container, "true")
    assert run(client, url, "spdy")[0] == 0
    host, _, path = url.removeprefix("http://").partition("/")

    connection = http.client.HTTPConnection(host, timeout=30)
    headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io"}
    connection.request("POST", f"/{path}", headers=headers)

    assert connection.getresponse().status == 404
    connection.close()


def test_metrics(stack: Stack, client: str, pods: Pods, container: str) -> None:
    """Sessions are counted by kind, transport and outcome."""
    run(client, exec_url(pods, container, "false"), "websocket")

    wanted = 'bulkhead_stream_sessions_ended_total{kind="exec",outcome="exit",transport="websocket"}'
    wait_for(lambda: wanted in metrics(stack.ports["stream-svc"]))


def metrics(port: int) -> str:
    """Return what the service counts."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text
