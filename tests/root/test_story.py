"""The README's story, told by the real crictl with each of the two runtimes."""

import http.client
import os
import pty
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crictl import Crictl
from support.ports import free_port
from support.stack import Stack

pytestmark = pytest.mark.root


@pytest.fixture(params=["runc", "crun"], scope="module")
def stack(request: pytest.FixtureRequest, registry: str) -> Iterator[Stack]:
    """One stack for each runtime."""
    with Stack(registry, default=request.param) as running:
        yield running


@pytest.fixture
def crictl(stack: Stack, tmp_path: Path) -> Crictl:
    """Real crictl on the stack's socket."""
    return Crictl(stack.address, tmp_path)


def pod_config(name: str, tmp_path: Path, **more: object) -> dict[str, object]:
    metadata = {"name": name, "uid": f"uid-{name}", "namespace": "default", "attempt": 0}
    return {"metadata": metadata, "log_directory": str(tmp_path / "logs"), "linux": {}, **more}


def container_config(registry: str, command: str, **more: object) -> dict[str, object]:
    return {
        "metadata": {"name": "main"},
        "image": {"image": f"{registry}/busybox:1"},
        "command": ["sh", "-c", command],
        "log_path": "main.log",
        "linux": {},
        **more,
    }


def read_until(fd: int, wanted: bytes, seconds: float = 60) -> bytes:
    seen, deadline = b"", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.2)[0]:
            try:
                chunk = os.read(fd, 4096)
            except OSError:  # a pty whose other end is gone
                break
            if not chunk:
                break
            seen += chunk
    return seen


def test_story(stack: Stack, crictl: Crictl, registry: str, tmp_path: Path) -> None:
    """pull, runp, create, start, logs -f, exec -s, exec -it, attach, port-forward, stats, stop, rm, rmp, rmi."""
    crictl("pull", f"{registry}/busybox:1")
    assert any(f"{registry}/busybox:1" in image["repoTags"] for image in crictl.json("images")["images"])

    port = free_port()
    mapping = [{"protocol": 0, "container_port": 8080, "host_port": port}]
    pod_file = crictl.file("pod.json", pod_config("story", tmp_path, hostname="tale", port_mappings=mapping))
    command = "echo begun; (while true; do echo hello | nc -l -p 8080; done) & while read l; do echo got:$l; done"
    container_file = crictl.file("container.json", container_config(registry, command, stdin=True))
    pod = crictl("runp", pod_file)
    container = crictl("create", pod, container_file, pod_file)
    assert crictl("start", container) == container

    with crictl.spawn("logs", "-f", container) as follower:
        assert follower.stdout is not None
        assert read_until(follower.stdout.fileno(), b"begun\n") == b"begun\n"

    assert crictl("exec", "-s", container, "hostname") == "tale"
    failed = crictl.run("exec", "-s", container, "sh", "-c", "echo out; exit 7", check=False)
    assert (failed.returncode, "exited with 7" in failed.stderr) == (1, True), failed.stderr
    failed = crictl.run("exec", container, "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (failed.stdout, "exit code 7" in failed.stderr) == ("out\n", True), failed.stderr

    master, slave = pty.openpty()
    terminal = subprocess.Popen(
        [*crictl.command, "exec", "-it", container, "sh"], stdin=slave, stdout=slave, stderr=slave, close_fds=True
    )
    os.close(slave)
    os.write(master, b"tty; echo a$((40+2))b\n")
    assert b"a42b" in read_until(master, b"a42b")
    os.write(master, b"exit 3\n")
    assert terminal.wait(60) != 0
    os.close(master)

    with crictl.spawn("attach", "-i", container) as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        attached.stdin.write("ping\n")
        attached.stdin.flush()
        assert b"got:ping" in read_until(attached.stdout.fileno(), b"got:ping\n")

    local = free_port()
    with crictl.spawn("port-forward", pod, f"{local}:8080") as forward:
        assert forward.stdout is not None
        assert b"Forwarding from" in read_until(forward.stdout.fileno(), b"Forwarding from 127")
        with socket.create_connection(("127.0.0.1", local), timeout=30) as connection:
            assert connection.recv(100) == b"hello\n"

    (stats,) = crictl.json("stats", container)["stats"]
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 0

    crictl("stop", "-t", "1", container)
    status = crictl.json("inspect", container)["status"]
    assert status["state"] == "CONTAINER_EXITED"
    assert "got:ping\n" in crictl("logs", container) + "\n"
    crictl("rm", container)
    crictl("stopp", pod)
    crictl("rmp", pod)
    assert crictl.json("pods")["items"] == []
    crictl("rmi", f"{registry}/busybox:1")
    assert not any(f"{registry}/busybox:1" in image["repoTags"] for image in crictl.json("images")["images"])


def test_metrics_of_all_five(stack: Stack) -> None:
    """Every service answers /metrics, /healthz and /readyz on its loopback port."""
    for service, port in stack.ports.items():
        for path in ("/metrics", "/healthz", "/readyz"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()

            assert answer.status == 200, (service, path, body)
        assert service.encode() in body or path == "/readyz"
