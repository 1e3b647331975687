"""sandbox-svc killed with SIGKILL wherever it hurts: nothing leaks, nothing is forgotten, exit codes are right."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import recovery
from support.leaks import Host
from support.nri import eventually
from support.pods import Pods
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

#: Stands before a CNI plugin or the runtime: makes a mark, and waits while a file of that name is there.
_SLOW = """#!/bin/sh
for word in "$@" $CNI_COMMAND; do
  if [ -e {directory}/hold-$word ]; then
    : > {directory}/reached-$word
    while [ -e {directory}/hold-$word ]; do sleep 0.02; done
  fi
done
exec {program} "$@"
"""


class Held:
    """A sandbox-svc whose bridge plugin and runtime can be stopped in the middle."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def hold(self, word: str) -> None:
        """Make the next program that is given the word wait."""
        (self.sandbox.directory / f"hold-{word}").touch()

    def reached(self, word: str) -> None:
        """Wait until a program waits at the word."""
        mark = self.sandbox.directory / f"reached-{word}"
        deadline = time.monotonic() + 60
        while not mark.exists():
            assert time.monotonic() < deadline, self.sandbox.log[-3000:]
            time.sleep(0.01)
        mark.unlink()

    def let_go(self, word: str) -> None:
        """Let the program that waits go on."""
        (self.sandbox.directory / f"hold-{word}").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One service for the module, with programs that can be held."""
    made = Sandbox(number=96)
    bins = made.directory / "bin"
    bins.mkdir()
    for name in ("bridge", "host-local", "portmap", "loopback"):
        program = _SLOW.format(directory=made.directory, program=f"/usr/lib/cni/{name}")
        (bins / name).write_text(program if name == "bridge" else f'#!/bin/sh\nexec /usr/lib/cni/{name} "$@"\n')
    (bins / "runtime").write_text(_SLOW.format(directory=made.directory, program="/usr/sbin/runc"))
    for file in bins.iterdir():
        file.chmod(0o755)
    made.bins = str(bins)
    made.binary = str(bins / "runtime")
    before = Host.look(str(made.directory))
    with made as running:
        yield running
        running.remove_all()
        assert running.remains() == []

    def left() -> list[str]:
        found = before.left_by(Host.look(str(made.directory)))
        # Other stacks of the machine may come and go meanwhile: what is ours carries an id or the scratch directory.
        ours = {str(made.directory), *made.images.keys}
        marked = [item for items in found.values() for item in items if any(mark in item for mark in ours)]
        return [*marked, *(name for name in found.get("links", []) if name != "bh96")]

    # A shim that has taken its files away is on its way out.
    eventually(lambda: left() == [], 20)


@pytest.fixture
def held(sandbox: Sandbox) -> Iterator[Held]:
    """The service, with everything let go and removed afterwards."""
    yield Held(sandbox)
    sandbox.images.before_prepare = None
    for file in sandbox.directory.glob("hold-*"):
        file.unlink()
    sandbox.remove_all()


def in_background(work: Callable[..., object], *arguments: object) -> threading.Thread:
    """Run something whose failure is expected: the service dies under it."""

    def quietly() -> None:
        with suppress(grpc.RpcError):
            work(*arguments)

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread


def settled(sandbox: Sandbox, allowed: int = 0) -> None:
    """Wait until nothing is left of what was half made."""
    deadline = time.monotonic() + 60
    while len(sandbox.remains()) > allowed:
        assert time.monotonic() < deadline, (sandbox.remains(), sandbox.log[-5000:])
        time.sleep(0.02)


def leases(sandbox: Sandbox) -> list[str]:
    return [path.name for path in Path(f"/run/bh{sandbox.number}").rglob("10.*")]


@pytest.mark.parametrize("point", ["snapshot", "ADD", "create", "start"])
def test_a_half_made_pod_is_taken_back(held: Held, point: str) -> None:
    """Killed in the middle of RunPodSandbox, the next start undoes it, and the same metadata works again."""
    sandbox = held.sandbox
    pods = sandbox.pods()
    config = pods.config(f"half-{point}")
    if point == "snapshot":
        reached, release = threading.Event(), threading.Event()

        def block(key: str) -> None:
            reached.set()
            release.wait(30)

        sandbox.images.before_prepare = block
        caller = in_background(pods.run, config)
        assert reached.wait(30)
        sandbox.kill()
        release.set()
        sandbox.images.before_prepare = None
    else:
        held.hold(point)
        caller = in_background(pods.run, config)
        held.reached(point)
        sandbox.kill()
        held.let_go(point)
    sandbox.start()
    settled(sandbox)
    caller.join(30)
    assert leases(sandbox) == []
    assert sandbox.shims() == []
    pods = sandbox.pods()
    pods.remove(pods.run(config))


@pytest.mark.parametrize("point", ["create", "start"])
def test_a_half_started_container_is_settled(held: Held, point: str) -> None:
    """Killed in the middle of StartContainer, the container is either taken back to CREATED or seen to run."""
    sandbox = held.sandbox
    pods = sandbox.pods()
    config = pods.config("starting")
    pod = pods.run(config)
    container = pods.create(pod, config, "app", "sleep 1000")
    held.hold(point)
    caller = in_background(pods.runtime.StartContainer, cri.StartContainerRequest(container_id=container))
    held.reached(point)
    sandbox.kill()
    held.let_go(point)
    caller.join(30)
    sandbox.start()
    pods = sandbox.pods()
    state = pods.status(container).state
    assert state in (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING)
    if state == cri.CONTAINER_CREATED:
        pods.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
    assert pods.exec(container, "echo", "alive").stdout == b"alive\n"


def test_a_half_stopped_pod_can_be_stopped_again(held: Held) -> None:
    """Killed in the middle of StopPodSandbox, the second call finishes it and the address is free."""
    sandbox = held.sandbox
    pods = sandbox.pods()
    config = pods.config("stopping")
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "sleep 1000")
    held.hold("DEL")
    caller = in_background(pods.runtime.StopPodSandbox, cri.StopPodSandboxRequest(pod_sandbox_id=pod))
    held.reached("DEL")
    sandbox.kill()
    held.let_go("DEL")
    caller.join(30)
    sandbox.start()
    pods = sandbox.pods()
    pods.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
    assert leases(sandbox) == []
    assert pods.status(container).exit_code == 137


def test_exits_and_log_lines_of_the_meantime(held: Held, tmp_path: Path) -> None:
    """What ended while nobody looked has its own exit code, and no line of its log is missing."""
    sandbox = held.sandbox
    pods = sandbox.pods()
    config = pods.config("meantime")
    pod = pods.run(config)
    counter = pods.start(pod, config, "counter", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.005; done")
    mounts = [cri.Mount(container_path="/marks", host_path=str(tmp_path))]
    script = "until [ -e /marks/go ]; do sleep 0.05; done; exit"
    dying = [pods.start(pod, config, f"dying{n}", f"{script} {n}", mounts=mounts) for n in (0, 3)]
    sandbox.kill()
    (tmp_path / "go").touch()
    for container in dying:
        sandbox.wait_shim_knows_exit(container)
    sandbox.start()
    pods = sandbox.pods()
    listed = pods.runtime.ListContainers(cri.ListContainersRequest(), timeout=30).containers
    assert {c.id: c.state for c in listed}[counter] == cri.CONTAINER_RUNNING
    assert [(pods.status(c).exit_code, pods.status(c).reason) for c in dying] == [(0, "Completed"), (3, "Error")]
    assert pods.runtime.PodSandboxStatus(
        cri.PodSandboxStatusRequest(pod_sandbox_id=pod), timeout=30
    ).status.network.ip.startswith("10.96.")
    # The Wait is parked again: an exit after the restart is seen, too.
    eventually(lambda: (sandbox.directory / "logs/counter.log").read_text().count("\n") > 50)
    pods.stop(counter, 0)
    assert pods.status(counter).exit_code == 137
    lines = [line.split(" ", 3)[3] for line in (sandbox.directory / "logs/counter.log").read_text().splitlines()]
    assert lines == [str(n) for n in range(len(lines))]
    assert len(lines) > 50
    (sandbox.directory / "logs/counter.log").unlink()


def test_snapshots_in_use_are_named_after_a_restart(held: Held) -> None:
    """What image-svc is told to retain after our restart holds every pod and container: all else is collected."""
    sandbox = held.sandbox
    pods = sandbox.pods()
    config = pods.config("retained")
    pod = pods.run(config)
    container = pods.create(pod, config, "app", "true")
    sandbox.kill()
    sandbox.images.calls.clear()
    sandbox.start()
    deadline = time.monotonic() + 60
    while not (told := [keys for method, keys in sandbox.images.calls if method == "Retain"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert {pod, container} <= set(told[0].split(","))


@pytest.mark.parametrize("away", [True, False])
def test_a_dead_shim_takes_its_containers_along(held: Held, away: bool) -> None:
    """A killed shim, with sandbox-svc there or not: its processes are killed, exit 137, the pod is not ready."""
    sandbox = held.sandbox
    pods = sandbox.pods()
    config = pods.config("shimless")
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "sleep 4242")
    other = pods.run(pods.config("bystander"))
    status = pods.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True), timeout=30)
    assert status.status.state == cri.SANDBOX_READY
    (shim,) = [pid for pid in sandbox.shims() if "4242" in children(pid)]
    if away:
        sandbox.kill()
    os.kill(shim, signal.SIGKILL)
    if away:
        sandbox.start()
        pods = sandbox.pods()
    ended = pods.wait_exited(container)
    assert (ended.exit_code, ended.reason) == (137, "Error")
    deadline = time.monotonic() + 60
    while states(pods) != {pod: cri.SANDBOX_NOTREADY, other: cri.SANDBOX_READY}:
        assert time.monotonic() < deadline, states(pods)
        time.sleep(0.02)
    eventually(lambda: not any(b"4242" in command for command in commands()))
    while {pod, container} & kept_by_runtime(sandbox.directory):
        assert time.monotonic() < deadline, kept_by_runtime(sandbox.directory)
        time.sleep(0.02)
    assert other in kept_by_runtime(sandbox.directory)
    pods.remove(pod)
    pods.remove(other)


def states(pods: Pods) -> dict[str, int]:
    answer = pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30)
    return {pod.id: pod.state for pod in answer.items}


def kept_by_runtime(directory: Path) -> set[str]:
    """Return the containers that the OCI runtime knows: each has a directory of its own."""
    return {path.name for path in directory.glob("state/**/runtime/*/*/*") if path.is_dir()}


def children(pid: int) -> str:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = []
    for child in found:
        with suppress(OSError):
            lines.append(Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return " ".join(lines)


def commands() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes())
    return [command for command in found if command.startswith(b"sleep")]


def test_one_bad_pod_does_not_stop_the_others(held: Held) -> None:
    """A shim that hangs leaves its own pod in doubt; all others are settled and served at once."""
    sandbox = held.sandbox
    pods = sandbox.pods()
    hung, well = pods.config("hung"), pods.config("well")
    pods.run(hung)
    (shim,) = sandbox.shims()
    good = pods.run(well)
    container = pods.start(good, well, "app", "sleep 1000")
    sandbox.kill()
    os.kill(shim, signal.SIGSTOP)
    try:
        began = time.monotonic()
        sandbox.start()
        pods = sandbox.pods()
        assert pods.exec(container, "true").exit_code == 0
        assert len(pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items) == 2
        # Whoever waited for the shim that hangs would have waited that long.
        assert time.monotonic() - began < recovery.CONNECT_PATIENCE
    finally:
        os.kill(shim, signal.SIGCONT)


def test_killed_at_random_under_load(held: Held) -> None:
    """Ten kills at random moments among creations, starts, stops and removals; at the end nothing is left."""
    sandbox = held.sandbox
    chance = random.Random(7)
    for round_number in range(10):
        pods = sandbox.pods()
        with ThreadPoolExecutor(4) as pool:
            for n in range(4):
                pool.submit(life, pods, f"r{round_number}-{n}")
            time.sleep(chance.uniform(0.01, 0.5))
            sandbox.kill()
        sandbox.start()
    sandbox.remove_all()
    settled(sandbox)
    assert leases(sandbox) == []
    assert sandbox.shims() == []


def life(pods: Pods, name: str) -> None:
    """Live the life of a pod until the service dies."""
    with suppress(grpc.RpcError):
        config = pods.config(name)
        pod = pods.run(config)
        container = pods.start(pod, config, "app", "sleep 1000")
        pods.exec(container, "true")
        pods.stop(container)
        pods.remove(pod)
