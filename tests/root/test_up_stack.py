"""`bulkhead up`: starting, restarting what dies, stopping in order, leaving nothing behind, refusing a second stack."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead import rpc
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc
from bulkhead.sockets import is_live
from support.small_stack import BIN, SmallStack, small_stack

pytestmark = pytest.mark.root

CRASHING = "#!/bin/sh\necho cannot find my thing >&2\nexit 3\n"


@pytest.fixture
def stack() -> Iterator[SmallStack]:
    """A stack that is prepared and not started."""
    with small_stack() as made:
        yield made


def test_start_and_stop_leave_nothing(stack: SmallStack) -> None:
    """The start ends with the crictl and kubelet lines; after the stop neither process nor state is left."""
    stack.start()
    text = stack.log
    pid_file = stack.directory / "state" / "bulkhead.pid"
    assert stack.process is not None
    assert pid_file.read_text() == f"{stack.process.pid}\n"
    ended = stack.stop()

    assert ended == 0
    assert f"crictl --runtime-endpoint unix://{stack.address} --image-endpoint unix://{stack.address} info" in text
    assert f"kubelet --container-runtime-endpoint=unix://{stack.address}" in text
    assert not (stack.directory / "state").exists()
    assert not os.path.lexists(stack.address)
    assert [name.name for name in stack.programs.iterdir() if stack.pids(name.name)] == []


@pytest.mark.parametrize("name", ["image-svc", "sandbox-svc", "decryptor", "cri-frontend", "image-svc-unpack"])
def test_what_is_killed_comes_back(stack: SmallStack, name: str) -> None:
    """A service that is killed is started again and answers; the others keep their processes."""
    stack.start()
    before = {other: stack.pid(other) for other in ("image-svc", "sandbox-svc", "stream-svc", "cri-frontend")}
    old = stack.pid(name)
    os.kill(old, signal.SIGKILL)
    stack.wait(lambda: stack.pids(name) not in ([], [old]))
    stack.wait(lambda: "ready" in status_of(stack, name).split())

    assert f"{name} was killed by SIGKILL" in stack.log
    assert all(stack.pid(other) == pid for other, pid in before.items() if other != name)


def test_the_zygote_comes_back(stack: SmallStack) -> None:
    """A zygote that is killed is started again, in a session of its own."""
    stack.start()
    old = stack.pid("bulkhead-shim-zygote")
    os.kill(old, signal.SIGKILL)
    stack.wait(lambda: stack.pids("bulkhead-shim-zygote") not in ([], [old]))
    new = stack.pid("bulkhead-shim-zygote")

    assert os.getsid(new) == new


def test_calls_wait_for_a_killed_backend(stack: SmallStack) -> None:
    """A call to a killed backend succeeds without the caller's noticing; one in flight fails and names it."""
    stack.start()
    channel = rpc.channel(str(stack.address))
    runtime = cri_grpc.RuntimeServiceStub(channel)
    gate = stack.directory / "gate"
    flying = runtime.StopContainer.future(cri.StopContainerRequest(container_id=str(gate)), timeout=60)
    stack.wait(lambda: "StopContainer has begun" in stack.log)
    os.kill(killed := stack.pid("sandbox-svc"), signal.SIGKILL)
    # What reaches it while it dies is in flight, too.
    stack.wait(lambda: not Path(f"/proc/{killed}").exists())
    runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=60)
    error = flying.exception(timeout=30)
    channel.close()

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "sandbox-svc went away during StopContainer; try again"


def test_three_hundred_blocked_calls(stack: SmallStack) -> None:
    """Three hundred calls that wait in sandbox-svc leave Version, Status and lists answered."""
    stack.start()
    channel = rpc.channel(str(stack.address))
    runtime, images = cri_grpc.RuntimeServiceStub(channel), cri_grpc.ImageServiceStub(channel)
    gate = stack.directory / "gate"
    request = cri.StopContainerRequest(container_id=str(gate))
    blocked = [runtime.StopContainer.future(request, timeout=120) for _ in range(300)]
    stack.wait(lambda: stack.log.count("StopContainer has begun") == 300)
    runtime.Version(cri.VersionRequest(), timeout=20)
    runtime.Status(cri.StatusRequest(), timeout=20)
    runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=20)
    images.ListImages(cri.ListImagesRequest(), timeout=20)
    assert not any(call.done() for call in blocked)
    gate.touch()
    for call in blocked:
        call.result(timeout=60)
    channel.close()


def test_a_crash_loop_at_the_start_ends_it(stack: SmallStack) -> None:
    """A service that cannot start ends the stack with its last words, and everything is taken away."""
    stack.program("image-svc", CRASHING)
    ended = subprocess.run(stack.command(), capture_output=True, text=True, timeout=60)

    assert ended.returncode == 1
    assert "image-svc does not start: it exited with status 3: cannot find my thing" in ended.stderr
    assert not (stack.directory / "state").exists()


def test_a_second_stack_is_refused(stack: SmallStack) -> None:
    """The same directories, or a socket that is live, are not taken over; the first stack goes on."""
    stack.start()
    second = subprocess.run(stack.command(), capture_output=True, text=True, timeout=60)
    with small_stack() as other:
        config = (other.directory / "config.toml").read_text()
        (other.directory / "config.toml").write_text(config.replace(str(other.address), str(stack.address)))
        third = subprocess.run(other.command(), capture_output=True, text=True, timeout=60)

    assert (second.returncode, third.returncode) == (1, 1)
    assert "is in use by another running stack" in second.stderr
    assert f"grpc.address {stack.address} is in use" in third.stderr
    assert is_live(str(stack.address))


def test_two_stacks_side_by_side(stack: SmallStack) -> None:
    """Stacks with directories, address and ports of their own do not meet."""
    stack.start()
    with small_stack() as other:
        other.start()
        assert other.stop() == 0
        assert is_live(str(stack.address))
    assert stack.stop() == 0


def test_the_zygote_of_running_pods_is_adopted(stack: SmallStack) -> None:
    """While a shim listens, the stop leaves it and the zygote alone, and the next start takes the zygote over."""
    stack.start()
    shim = stack.state / "s" / ("0" * 16)
    shim.mkdir(mode=0o711)
    with listening(str(shim / "task")):
        zygote = stack.pid("bulkhead-shim-zygote")
        assert stack.stop() == 0
        assert stack.pid("bulkhead-shim-zygote") == zygote
        assert "1 pods go on" in stack.log
        stack.start()
        assert stack.pid("bulkhead-shim-zygote") == zygote
        assert f"goes on (pid {zygote})" in stack.log
    assert stack.stop() == 0
    assert not (stack.directory / "state").exists()
    assert stack.pids("bulkhead-shim-zygote") == []


def test_services_end_with_a_killed_supervisor(stack: SmallStack) -> None:
    """Kill -9 of the supervisor ends the services, not the zygote, and the next start finds everything free."""
    stack.start()
    zygote = stack.pid("bulkhead-shim-zygote")
    assert stack.process is not None
    stack.process.kill()
    stack.process.wait(30)
    stack.start()

    assert stack.pid("bulkhead-shim-zygote") == zygote
    assert stack.stop() == 0


def test_a_stop_ends_a_zygote_that_does_not_listen_yet(stack: SmallStack) -> None:
    """Stopped while the zygote is still on its way, the stack leaves it behind no more than one that listens."""
    stack.program("bulkhead-shim-zygote", "#!/usr/bin/python3\nimport time\ntime.sleep(1000)\n")
    stack.process = subprocess.Popen(stack.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.wait(lambda: bool(stack.pids("bulkhead-shim-zygote")))

    assert stack.stop() == 0
    assert stack.pids("bulkhead-shim-zygote") == []


def test_a_second_signal_is_harder(stack: SmallStack) -> None:
    """A service that ignores SIGTERM is killed at the second signal, without its patience."""
    deaf = '#!/bin/sh\ntrap "" TERM\necho deaf >&2\nwhile :; do sleep 0.2; done\n'
    stack.program("stream-svc", deaf)
    command = stack.command()
    command[2] = f"from bulkhead.supervisor import stack\nstack.STOP_PATIENCE = 1000.0\n{command[2]}"
    with (stack.directory / "log").open("ab") as log:
        stack.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.wait(lambda: "deaf" in stack.log)
    stack.process.send_signal(signal.SIGTERM)
    stack.wait(lambda: "stopping" in stack.log)
    stack.process.send_signal(signal.SIGTERM)

    stack.process.wait(60)
    assert stack.pids("stream-svc") == []


def test_the_sockets_owner_is_honoured() -> None:
    """grpc.uid and grpc.gid own the CRI socket, also after the frontend's restart."""
    with small_stack(uid=12345, gid=12346) as stack:
        stack.start()
        path = stack.state / "cri-frontend" / "cri.sock"
        stack.wait(lambda: (path.stat().st_uid, path.stat().st_gid) == (12345, 12346))
        old = stack.pid("cri-frontend")
        os.kill(old, signal.SIGKILL)
        stack.wait(lambda: stack.pids("cri-frontend") not in ([], [old]))
        stack.wait(lambda: is_live(str(path)))
        stack.wait(lambda: (path.stat().st_uid, path.stat().st_gid) == (12345, 12346))

        assert path.stat().st_mode & 0o777 == 0o660


def test_keys_are_read_anew_on_sighup(stack: SmallStack) -> None:
    """SIGHUP gives the decryptor the key directory as it is now."""
    stack.start()
    (stack.directory / "keys" / "new.pem").write_text("no key")
    assert stack.process is not None
    stack.process.send_signal(signal.SIGHUP)
    stack.wait(lambda: "new.pem" in stack.log)
    stack.wait(lambda: "ready" in status_of(stack, "decryptor").split())


def test_a_clone_below_a_closed_directory_is_refused(stack: SmallStack) -> None:
    """Programs that a service's user cannot reach are named before anything is started or made."""
    closed = stack.directory / "closed"
    closed.mkdir(mode=0o700)
    moved = closed / "bin"
    stack.programs.rename(moved)
    command = [moved.as_posix() if part == str(stack.programs) else part for part in stack.command()]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert tried.returncode == 1
    assert f"may not search {closed} (mode 0700)" in tried.stderr
    assert f"chmod o+x {closed}" in tried.stderr
    assert not (stack.directory / "state").exists()


def status_of(stack: SmallStack, name: str) -> str:
    """Return the line of `bulkhead status` about one service."""
    command = [str(BIN / "bulkhead"), "status", "--config", str(stack.directory / "config.toml")]
    table = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    return next(line for line in table.splitlines() if line.split()[:1] == [name])


class listening:  # noqa: N801 # used like a function
    """A stand-in for a shim: a socket that accepts connections while the block runs."""

    def __init__(self, path: str) -> None:
        import socket

        self._path, self._socket = path, socket.socket(socket.AF_UNIX)

    def __enter__(self) -> None:
        self._socket.bind(self._path)
        self._socket.listen(4096)

    def __exit__(self, *_: object) -> None:
        self._socket.close()
