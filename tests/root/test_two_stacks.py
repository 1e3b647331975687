"""Two stacks run side by side, refuse each other's directories, and leave nothing behind."""

import subprocess
import time
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.pods import Pods
from support.stack import BIN, Stack

pytestmark = pytest.mark.root


@pytest.mark.usefixtures("leak_check")
def test_side_by_side_and_clean(registry: str, tmp_path: Path) -> None:
    """Two stacks with directories, sockets and ports of their own run a pod each and are gone when stopped."""
    with Stack(registry, number=90) as one, Stack(registry, number=91) as two:
        for stack in (one, two):
            image = cri.ImageSpec(image=f"{registry}/busybox:1")
            stack.image_service().PullImage(cri.PullImageRequest(image=image), timeout=60)
            pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
            config = pods.config(f"pod-{stack.number}")
            pod = pods.run(config)
            container = pods.start(pod, config, f"c{stack.number}", "sleep 1000")
            listed = pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items
            assert [item.id for item in listed] == [pod]
            assert pods.exec(container, "true").exit_code == 0
        second = subprocess.run(
            [str(BIN / "bulkhead"), "up", "--config", str(one.config)], capture_output=True, text=True, timeout=60
        )
        assert second.returncode != 0
        assert "in use" in second.stderr + second.stdout


@pytest.mark.usefixtures("leak_check")
def test_pods_outlive_the_stack(registry: str, tmp_path: Path) -> None:
    """A stack that is told to stop leaves its pods running; the next one finds them with all their lines."""
    with Stack(registry, number=92) as stack:
        image = cri.ImageSpec(image=f"{registry}/busybox:1")
        stack.image_service().PullImage(cri.PullImageRequest(image=image), timeout=60)
        pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
        config = pods.config("stays")
        pod = pods.run(config)
        container = pods.start(pod, config, "main", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done")
        assert stack.stop() == 0
        before = (tmp_path / "main.log").stat().st_size
        deadline = time.monotonic() + 60
        while (tmp_path / "main.log").stat().st_size <= before:
            assert time.monotonic() < deadline
            time.sleep(0.05)

        stack.start()

        pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
        assert pods.status(container).state == cri.CONTAINER_RUNNING
        lines = [line.split(" ", 3)[3] for line in (tmp_path / "main.log").read_text().split("\n")[:-1]]
        assert lines == [str(i) for i in range(len(lines))]
        pods.remove(pod)
