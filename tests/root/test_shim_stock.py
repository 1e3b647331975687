"""Our shim under a stock containerd, Debian's 1.6 and 2: CRI pods, exec, stats, and the daemon's death."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.containerd import Containerd
from support.crictl import Crictl
from support.pods import Pods

pytestmark = pytest.mark.root

RUNTIME = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bulkhead]
runtime_type = "io.containerd.bulkhead.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bulkhead.options]
ConfigPath = "{options}"
"""


# Debian's crun refuses the OCI version that containerd 2 writes, under whichever shim.
@pytest.fixture(params=[("1.6", "runc"), ("1.6", "crun"), ("2", "runc")], ids="-".join, scope="module")
def containerd(
    request: pytest.FixtureRequest, registry: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    """A containerd whose default runtime is our shim."""
    version, runtime = request.param
    binary = Path("/usr/bin/containerd") if version == "1.6" else build("containerd")["containerd"]
    if not binary.exists():
        pytest.skip("containerd 1.6 is not installed")
    path = f"{Path(sys.executable).parent}:{binary.parent}"
    options = tmp_path_factory.mktemp("options") / "shim.toml"
    options.write_text(f'BinaryName = "{runtime}"\n')
    more = RUNTIME.format(options=options)
    with Containerd(registry, str(binary), path, number=97, default="bulkhead", more=more) as running:
        image = cri.ImageSpec(image=f"{registry}/busybox:1")
        running.image_service().PullImage(cri.PullImageRequest(image=image), timeout=60)
        yield running


def shims(containerd: Containerd) -> list[int]:
    """Return the processes that serve as shims of this containerd."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"containerd-shim-bulkhead-v2" in word for word in line) and containerd.address.encode() in line:
            found.append(int(pid))
    return found


def test_a_pod_of_two_containers(containerd: Containerd, registry: str, tmp_path: Path) -> None:
    """One shim serves the pod; exec, attach's exec twin, stats and logs work; exits outlive a kill of containerd."""
    pods = Pods(containerd.runtime_service(), f"{registry}/busybox:1", tmp_path, "bulkhead")
    config = pods.config("ours")
    pod = pods.run(config)
    counter = pods.start(pod, config, "counter", "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done")
    waiter = pods.start(pod, config, "waiter", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9")
    deadline = time.monotonic() + 30
    # A child that the shim has forked has its command line until it becomes another program.
    while len(shims(containerd)) != 1:
        assert time.monotonic() < deadline, shims(containerd)
        time.sleep(0.05)
    assert pods.status(counter).state == cri.CONTAINER_RUNNING
    answer = pods.exec(counter, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 5)
    crictl = Crictl(containerd.address, tmp_path)
    assert crictl("exec", "-i", counter, "cat", stdin="through\n") == "through"
    stats = pods.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=counter), timeout=30).stats
    assert stats.memory.usage_bytes.value > 0
    assert stats.cpu.usage_core_nano_seconds.value > 0

    containerd.kill()
    time.sleep(0.3)
    containerd.start()

    pods = Pods(containerd.runtime_service(), f"{registry}/busybox:1", tmp_path, "bulkhead")
    assert pods.status(counter).state == cri.CONTAINER_RUNNING
    pods.exec(waiter, "touch", "/tmp/go")
    assert pods.wait_exited(waiter).exit_code == 9
    pods.stop(counter)
    assert pods.status(counter).exit_code == 137
    pods.remove(pod)
    deadline = time.monotonic() + 60
    while shims(containerd) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert shims(containerd) == []


def test_the_runtime_refuses(containerd: Containerd, registry: str, tmp_path: Path) -> None:
    """The runtime's own words reach the client when there is nothing to run."""
    pods = Pods(containerd.runtime_service(), f"{registry}/busybox:1", tmp_path, "bulkhead")
    config = pods.config("refused")
    pod = pods.run(config)
    bad = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="bad"),
        image=cri.ImageSpec(image=f"{registry}/busybox:1"),
        command=["/nonesuch"],
        log_path="bad.log",
        linux=cri.LinuxContainerConfig(),
    )
    request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=bad, sandbox_config=config)
    ident = pods.runtime.CreateContainer(request, timeout=60).container_id
    with pytest.raises(grpc.RpcError, match="nonesuch"):
        pods.runtime.StartContainer(cri.StartContainerRequest(container_id=ident), timeout=60)
    pods.remove(pod)
