"""Pods of a shim that is not ours: Debian's containerd-shim-runc-v2, with our keeper beside it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.nri import eventually
from support.pods import Pods
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

SHIM = "/usr/bin/containerd-shim-runc-v2"
HANDLER = f"""
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stock]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{SHIM}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stock.options]
BinaryName = "/usr/sbin/runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.absent]
runtime_type = "io.containerd.absent.v1"
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One service for the module."""
    if not Path(SHIM).exists():
        pytest.skip(f"{SHIM} is not installed")
    with Sandbox(number=97, more=HANDLER) as running:
        yield running


@pytest.fixture
def pods(sandbox: Sandbox) -> Iterator[Pods]:
    """A maker of pods of the stock shim; afterwards neither pods nor shims are left."""
    yield sandbox.pods("stock")
    sandbox.remove_all()
    assert sandbox.remains() == []
    await_stock_shims(sandbox, 0)


def await_stock_shims(sandbox: Sandbox, count: int) -> list[int]:
    """Wait until there are that many stock shims and return them.

    A child that a shim has forked has the shim's command line until it becomes the runtime.
    """
    deadline = time.monotonic() + 60
    while len(found := stock_shims(sandbox)) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def stock_shims(sandbox: Sandbox) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if command.startswith(SHIM) and str(sandbox.directory) in command:
            found.append(int(path.name))
    return found


def test_a_pod_lives_and_dies(sandbox: Sandbox, pods: Pods) -> None:
    """Log, exec, exit code, out-of-memory reason and removal are as with our own shim."""
    config = pods.config("stock")
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "echo hello; exec sleep 1000")
    assert pods.exec(container, "sh", "-c", "echo out; exit 6").exit_code == 6
    eventually(lambda: "stdout F hello" in (sandbox.directory / "logs/app.log").read_text())
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=16 << 20, memory_swap_limit_in_bytes=16 << 20)
    linux = cri.LinuxContainerConfig(resources=limits)
    ended = pods.wait_exited(pods.start(pod, config, "oom", "exec tail /dev/zero", linux=linux))
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    pods.stop(container, 0)
    assert pods.status(container).exit_code == 137
    await_stock_shims(sandbox, 1)
    pods.remove(pod)


@pytest.mark.parametrize("away", [True, False])
def test_a_dead_keeper_is_replaced(sandbox: Sandbox, pods: Pods, away: bool) -> None:
    """Nothing happens to the containers; exec, log and exit codes come through a new keeper."""
    config = pods.config("keeperless")
    pod = pods.run(config)
    script = "i=0; while [ ! -e /tmp/go ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 8"
    container = pods.start(pod, config, "kept", script)
    (keeper,) = sandbox.shims()
    if away:
        sandbox.kill()
    os.kill(keeper, signal.SIGKILL)
    time.sleep(0.3)
    if away:
        sandbox.start()
        pods = sandbox.pods("stock")
    deadline = time.monotonic() + 60
    while sandbox.shims() in ([], [keeper]):
        assert time.monotonic() < deadline, sandbox.log[-3000:]
        time.sleep(0.02)
    assert pods.status(container).state == cri.CONTAINER_RUNNING
    log = sandbox.directory / "logs/kept.log"
    eventually(lambda: log.read_text().count("\n") > 10)
    pods.exec(container, "touch", "/tmp/go")
    assert pods.wait_exited(container).exit_code == 8
    lines = [line.split(" ", 3)[3] for line in log.read_text().splitlines()]
    assert lines == [str(n) for n in range(len(lines))]
    assert len(lines) > 10
    log.unlink()
    pods.remove(pod)


@pytest.mark.parametrize("away", [True, False])
def test_a_dead_foreign_shim_ends_its_pod(sandbox: Sandbox, pods: Pods, away: bool) -> None:
    """Its containers are killed and exit with 137, and the pod can be removed."""
    config = pods.config("shimless")
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "exec sleep 171717")
    (shim,) = await_stock_shims(sandbox, 1)
    if away:
        sandbox.kill()
    os.kill(shim, signal.SIGKILL)
    if away:
        sandbox.start()
        pods = sandbox.pods("stock")
    ended = pods.wait_exited(container)
    assert (ended.exit_code, ended.reason) == (137, "Error")

    def listed() -> list[tuple[str, int]]:
        items = pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items
        return [(item.id, item.state) for item in items]

    eventually(lambda: listed() == [(pod, cri.SANDBOX_NOTREADY)])
    pods.remove(pod)
    eventually(lambda: not subprocess.run(["pgrep", "-f", "^sleep 171717$"], capture_output=True, timeout=30).stdout)


def test_a_shim_that_is_not_there_is_named(sandbox: Sandbox) -> None:
    """The error says which binary was looked for, and nothing is left."""
    absent = sandbox.pods("absent")
    with pytest.raises(Exception, match="containerd-shim-absent-v1"):
        absent.run(absent.config("absent"))
    assert sandbox.remains() == []


def test_a_foreign_shim_finds_the_network_complete(tmp_path: Path) -> None:
    """A machine around a pod is given the interfaces that there are at create, so its shim is not started before."""
    if not Path(SHIM).exists():
        pytest.skip(f"{SHIM} is not installed")
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for plugin in Path("/usr/lib/cni").iterdir():
        (plugins / plugin.name).symlink_to(plugin)
    (plugins / "bridge").unlink()
    with Sandbox(number=96, more=HANDLER, bins=str(plugins)) as running:
        seen = tmp_path / "seen"
        (plugins / "bridge").write_text(
            f"#!/bin/sh\n[ $CNI_COMMAND = ADD ] && sleep 0.5 && pgrep -f '^{SHIM}.*{running.directory}' >> {seen}\n"
            "exec /usr/lib/cni/bridge\n"
        )
        (plugins / "bridge").chmod(0o755)
        pods = running.pods("stock")
        pod = pods.run(pods.config("early"))
        await_stock_shims(running, 1)
        pods.remove(pod)
        running.remove_all()
        await_stock_shims(running, 0)
    assert seen.read_text() == ""
