"""The keeper beside a stock shim, of containerd 1.6 and 2: the same services as our own shim's, by other means."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.proto import shim_pb2
from bulkhead.proto.containerd import runc_options_pb2
from conformance.build import build
from sandbox_svc.shim import uris
from sandbox_svc.task import foreign
from support.shim_pod import Pod, Zygote, process, read_all, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as running:
        yield running


class KeptPod(Pod):
    """A pod whose shim is a stock one, behind our keeper; its one container is c."""

    def launch(self, binary: Path, *args: str, tty: bool = False) -> int:
        """Start the stock shim, the keeper beside it, and the container; return the init's pid."""
        bundle = self.bundle("c", *args, tty=tty)
        held = foreign.held_log(bundle)
        options = runc_options_pb2.Options(binary_name="runc", root=f"{self.zygote.directory}/run")
        events = self.zygote.directory / "events.ttrpc"
        started = foreign.start(str(binary), "c", bundle, namespace="k8s.io", events=events, options=options)
        self.keeper = {"kind": "keeper", "address": started.address, "service": started.service}
        self.fork(**self.keeper)
        pid = self.run("c", *args, tty=tty, stdin=uris.cri_stdin(once=True))
        os.close(held)
        return pid


@pytest.fixture(params=["1.6", "2"])
def binary(request: pytest.FixtureRequest) -> Path:
    path = Path("/usr/bin/containerd-shim-runc-v2")
    if request.param == "2":
        path = build("containerd")["containerd-shim-runc-v2"]
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    return path


@pytest.fixture
def pod(zygote: Zygote, binary: Path) -> Iterator[KeptPod]:
    made = KeptPod(zygote, f"kept-{time.monotonic_ns()}", "runc")
    yield made
    made.close()


def test_log_exec_sync_and_attach(pod: KeptPod, binary: Path) -> None:
    """The log is written, ExecSync answers output and codes and keeps deadlines, attach feeds standard input."""
    pod.launch(binary, "sh", "-c", "echo out; echo err >&2; exec cat")
    until(lambda: len(pod.lines("c")) == 2)
    assert sorted(pod.lines("c")) == [("stderr", "F", "err"), ("stdout", "F", "out")]
    answer = pod.exec_sync("c", "sh", "-c", "echo one; echo two >&2; exit 3")
    assert (answer.exit_code, answer.stdout, answer.stderr) == (3, b"one\n", b"two\n")
    fds: list[int] = []
    long = pod.exec_sync("c", "head", "-c", "300000", "/dev/zero", fds=fds)
    assert (long.stdout_length, os.fstat(fds[0]).st_size) == (300_000, 300_000)
    os.close(fds[0])
    began = time.monotonic()
    assert pod.exec_sync("c", "sleep", "60", timeout_ms=300).timed_out
    assert time.monotonic() - began < 40

    ticket = shim_pb2.AttachTicket(container_id="c", stdin=True, stdout=True, stderr=True)
    session = pod.session("attach", attach=ticket)
    streams = session.begin()
    os.write(streams["stdin"], b"attached\n")
    assert os.read(streams["stdout"], 100) == b"attached\n"
    os.close(streams["stdin"])
    assert session.receive() == {"exit": {"code": 0, "message": ""}}
    session.close()
    for name in ("stdout", "stderr"):
        os.close(streams[name])

    assert pod.wait("c") == 0
    assert pod.lines("c")[-1] == ("stdout", "F", "attached")
    (kept,) = pod.shim("Exits", shim_pb2.ExitsRequest(), shim_pb2.ExitsResponse).exits
    assert (kept.container_id, kept.status) == ("c", 0)


def test_exec_sessions(pod: KeptPod, binary: Path) -> None:
    """Exec with pipes and with a terminal work, and a hang-up kills the process."""
    pod.launch(binary, "sleep", "1000")
    ticket = shim_pb2.ExecTicket(
        container_id="c", process=process("sh", "-c", "cat; exit 5"), stdin=True, stdout=True, stderr=True
    )
    session = pod.session("pipes", exec=ticket)
    streams = session.begin()
    os.write(streams["stdin"], b"typed\n")
    os.close(streams["stdin"])
    assert session.receive() == {"exit": {"code": 5, "message": ""}}
    assert (read_all(streams["stdout"]), read_all(streams["stderr"])) == (b"typed\n", b"")
    session.close()
    script = "until stty size | grep '25 81'; do sleep 0.05; done; read x; exit 6"
    ticket = shim_pb2.ExecTicket(
        container_id="c", process=process("sh", "-c", script, tty=True), stdin=True, stdout=True, tty=True
    )
    session = pod.session("tty", exec=ticket)
    terminal = session.begin(width=81, height=25)["tty"]
    seen = b""
    while b"25 81" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"go\n")
    assert session.receive() == {"exit": {"code": 6, "message": ""}}
    session.close()
    os.close(terminal)
    ticket = shim_pb2.ExecTicket(container_id="c", process=process("sleep", "1234"))
    session = pod.session("hang", exec=ticket)
    session.begin()
    until(lambda: "1234" in pod.exec_sync("c", "ps").stdout.decode())
    session.close()

    until(lambda: "1234" not in pod.exec_sync("c", "ps").stdout.decode())


def test_a_killed_keeper_is_replaced_without_loss(pod: KeptPod, binary: Path) -> None:
    """While no keeper is there the container waits; the next one has its log, its execs and its exit."""
    pod.launch(binary, "sh", "-c", "i=0; until [ -e /go ]; do echo line $i; i=$((i+1)); done; exit 4")
    until(lambda: pod.lines("c"))
    os.kill(pod.pid, signal.SIGKILL)
    until(lambda: pod.client.closed)
    pod.fork(**pod.keeper)
    seen = len(pod.lines("c"))
    until(lambda: len(pod.lines("c")) > seen)
    assert pod.exec_sync("c", "true").exit_code == 0

    pod.exec_sync("c", "touch", "/go")  # Its own code may be 137: the init ends at once, and its namespace with it.
    assert pod.wait("c") == 4
    # What the dead keeper had read and not yet written is lost, at most one read and the lines at its edges.
    numbers = [int(text.removeprefix("line ")) for _, _, text in pod.lines("c") if re.fullmatch(r"line \d+", text)]
    assert numbers == sorted(numbers)
    assert len(numbers) > numbers[-1] - 20_000
