"""A pod of two containers through the stock containerd-shim-runc-v2 of containerd 1.6 and 2."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.crictl import Crictl
from support.pods import Pods
from support.stack import Stack

pytestmark = pytest.mark.root

HANDLER = """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{path}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}.options]
BinaryName = "/usr/sbin/runc"
"""


@pytest.fixture(scope="module")
def stack(registry: str) -> Iterator[Stack]:
    """A stack that knows both stock shims by their path."""
    two = str(build("containerd")["containerd-shim-runc-v2"])
    more = HANDLER.format(name="stock1", path="/usr/bin/containerd-shim-runc-v2")
    more += HANDLER.format(name="stock2", path=two)
    with Stack(registry, number=94, more=more) as running:
        image = cri.ImageSpec(image=f"{registry}/busybox:1")
        running.image_service().PullImage(cri.PullImageRequest(image=image), timeout=60)
        yield running


@pytest.mark.parametrize("handler", ["stock1", "stock2"])
def test_pod_of_two_containers(stack: Stack, registry: str, tmp_path: Path, handler: str) -> None:
    """Both containers run, log, answer ExecSync and exec, survive a kill of sandbox-svc, and report exit codes."""
    pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path, handler)
    config = pods.config(f"foreign-{handler}")
    pod = pods.run(config)
    counter = pods.start(pod, config, "counter", "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done")
    waiter = pods.start(pod, config, "waiter", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9")
    assert pods.status(counter).state == cri.CONTAINER_RUNNING
    answer = pods.exec(counter, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 5)
    crictl = Crictl(stack.address, tmp_path)
    assert crictl("exec", "-i", counter, "cat", stdin="through\n") == "through"
    stats = pods.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=counter), timeout=30).stats
    assert stats.memory.usage_bytes.value > 0

    stack.wait_restarted("sandbox-svc", stack.kill("sandbox-svc"))

    pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path, handler)
    pods.exec(waiter, "touch", "/tmp/go")
    assert pods.wait_exited(waiter).exit_code == 9
    pods.stop(counter)
    assert pods.status(counter).exit_code == 137
    lines = [line.split(" ", 3)[3] for line in (tmp_path / "counter.log").read_text().splitlines()]
    assert lines == [f"line {i}" for i in range(len(lines))]
    assert lines
    pods.remove(pod)
