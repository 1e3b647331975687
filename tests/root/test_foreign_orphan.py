"""Shims that are not ours and are killed, or whose start was not lived to be written down: nothing of them stays."""

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sandbox_svc import process
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

REAL = Path("/usr/bin/containerd-shim-runc-v2")
#: Starts the real shim and, while a file names a victim, kills that before the answer can be read.
SCRIPT = """#!/bin/sh
{real} "$@" || exit
[ -e {directory}/victim ] && kill -9 $(cat {directory}/victim) && rm {directory}/victim
exit 0
"""
HANDLER = """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stock]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{script}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stock.options]
BinaryName = "/usr/sbin/runc"
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A service whose stock shims are started by that script."""
    if not REAL.exists():
        pytest.skip(f"{REAL} is not installed")
    script = tmp_path / REAL.name
    script.write_text(SCRIPT.format(real=REAL, directory=tmp_path))
    script.chmod(stat.S_IRWXU)
    with Sandbox(number=86, more=HANDLER.format(script=script)) as running:
        yield running


def test_a_shim_whose_start_nobody_noted_is_ended(sandbox: Sandbox, tmp_path: Path) -> None:
    """The next sandbox-svc, which takes the pod back, finds its shim by the pod's id."""
    pods = sandbox.pods("stock")
    assert sandbox.service is not None
    (tmp_path / "victim").write_text(str(sandbox.service.pid))
    with pytest.raises(grpc.RpcError):
        pods.run(pods.config("orphan"))
    sandbox.service.wait(30)
    (bundle,) = (sandbox.state / "bundles").rglob("config.json")
    (stray,) = process.running(str(REAL), bundle.parent.name)

    sandbox.start()
    deadline = time.monotonic() + 60
    while (process.alive(stray) or sandbox.remains()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (process.alive(stray), sandbox.remains()) == (False, [])
    assert process.running(str(REAL), bundle.parent.name) == []


def test_a_killed_shims_runtime_keeps_nothing(sandbox: Sandbox) -> None:
    """What the runtime keeps of a killed shim's containers goes with them, not that of the pause container alone."""
    pods = sandbox.pods("stock")
    config = pods.config("killed")
    pod = pods.run(config)
    container = pods.start(pod, config, "c", "exec sleep 1000")
    (shim,) = process.running(str(REAL), pod)
    assert process.kill(shim)
    pods.wait_exited(container)
    sandbox.remove_all()

    assert sandbox.remains() == []
    assert list((sandbox.state / "runtime").glob("*/*/*")) == []
    assert "delete of" not in sandbox.log
