"""Any service may be killed at any time: pods, lists, exit codes and log lines survive it."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.pods import Pods
from support.stack import SERVICES, Stack

pytestmark = pytest.mark.root

COUNTER = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.005; done"


@pytest.fixture(scope="module")
def stack(registry: str) -> Iterator[Stack]:
    """One stack for the module."""
    with Stack(registry, number=89) as running:
        running.image_service().PullImage(
            cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry}/busybox:1")), timeout=60
        )
        yield running


def log_lines(path: Path) -> list[str]:
    """Return the text of a CRI log's lines."""
    return [line.split(" ", 3)[3] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("service", [*SERVICES, "image-svc-unpack"])
def test_kill_and_restart(stack: Stack, registry: str, tmp_path: Path, service: str) -> None:
    """After kill -9 of a service the pod runs on, what died meanwhile has its exit code, no log line is lost."""
    pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
    config = pods.config(f"kill-{service}")
    pod = pods.run(config)
    counter = pods.start(pod, config, "counter", COUNTER)
    dying = pods.start(pod, config, "dying", "sleep 0.6; exit 42")
    time.sleep(0.2)

    old = stack.kill(service)
    time.sleep(0.8)
    stack.wait_restarted(service, old)

    pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
    assert pods.status(counter).state == cri.CONTAINER_RUNNING
    ended = pods.wait_exited(dying)
    assert (ended.exit_code, ended.reason) == (42, "Error")
    ready = cri.PodSandboxFilter(id=pod, state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY))
    (listed,) = pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=ready), timeout=30).items
    assert listed.metadata.name == f"kill-{service}"
    assert pods.exec(counter, "echo", "alive").stdout == b"alive\n"
    deadline = time.monotonic() + 60
    while (tmp_path / "counter.log").read_text().count("\n") <= 50:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pods.stop(counter)
    lines = log_lines(tmp_path / "counter.log")
    assert lines == [f"line {i}" for i in range(len(lines))]
    assert len(lines) > 50
    pods.remove(pod)


def test_a_pod_can_be_made_and_removed_after_each_kill(stack: Stack, registry: str, tmp_path: Path) -> None:
    """A pod made before sandbox-svc died is stopped and removed after it came back."""
    pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
    config = pods.config("survivor")
    pod = pods.run(config)
    container = pods.start(pod, config, "main", "sleep 1000")

    stack.wait_restarted("sandbox-svc", stack.kill("sandbox-svc"))

    pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
    pods.stop(container)
    assert pods.status(container).exit_code == 137
    pods.remove(pod)
    with pytest.raises(grpc.RpcError) as caught:
        pods.status(container)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
