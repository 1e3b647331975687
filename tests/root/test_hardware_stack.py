"""CDI devices and block I/O classes on a whole stack, with both runtimes: what containers really have."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.images import Image, Pusher, busybox_layer
from support.leaks import cgroups_named
from support.pods import Pods
from support.stack import Stack

pytestmark = pytest.mark.root

SPEC = {
    "cdiVersion": "0.7.0",
    "kind": "vendor.com/test",
    "containerEdits": {"env": ["FROM_SPEC=1"]},
    "devices": [
        {
            "name": "full",
            "containerEdits": {
                "env": ["DEVICE=full"],
                "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/full", "permissions": "rw"}],
                "mounts": [
                    {"hostPath": "{directory}/library", "containerPath": "/opt/library", "options": ["ro", "bind"]}
                ],
                # It reads its standard input: crun fails where a hook ends before it has been told the state.
                "hooks": [
                    {
                        "hookName": "createRuntime",
                        "path": "/bin/sh",
                        "args": ["sh", "-c", "cat > {directory}/hooked"],
                    }
                ],
                "additionalGids": [4444],
            },
        }
    ],
}  # fmt: skip


#: The file of classes, and a handler whose runtime moves network devices.
MORE = """
[plugins."io.containerd.service.v1.tasks-service"]
blockio_config_file = "{classes}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.current.options]
BinaryName = "{runc}"
"""
LINK = {
    "cdiVersion": "1.1.0",
    "kind": "vendor.com/link",
    "devices": [{"name": "0", "containerEdits": {"netDevices": [{"hostInterfaceName": "bhcdi0", "name": "vendor0"}]}}],
}


def block_device() -> tuple[str, str]:
    """Return a whole disk of this machine, by path and by numbers."""
    for place in sorted(Path("/sys/block").iterdir()):
        if (path := Path("/dev", place.name)).is_block_device():
            return str(path), (place / "dev").read_text().strip()
    pytest.skip("probe: /sys/block and /dev have no disk in common")


@pytest.fixture(scope="module")
def stack(registry: str) -> Iterator[Stack]:
    Pusher(registry).image("box", "1", Image([busybox_layer()], {"Cmd": ["sh"]}))
    made = Stack(registry, number=84)
    specs = made.directory / "cdi"
    classes = made.directory / "blockio.yaml"
    made.runtime = f'cdi_spec_dirs = ["{specs}"]'
    made.more = MORE.format(classes=classes, runc=build("runc")["runc"])
    classes.write_text(
        f"Classes:\n  slow:\n  - Devices: [{block_device()[0]}]\n    ThrottleReadBps: 5M\n    ThrottleWriteIOPS: 100\n"
    )
    specs.mkdir()
    (made.directory / "library").mkdir()
    (made.directory / "library" / "lib.so").write_text("library")
    with made as running:
        running.image_service().PullImage(
            cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry}/box:1")), timeout=60
        )
        yield running


@pytest.mark.parametrize("handler", ["runc", "crun"])
def test_a_cdi_device(stack: Stack, registry: str, tmp_path: Path, handler: str) -> None:
    """A spec that appears while the stack runs gives a container its node, variables, mount, hook and group."""
    (stack.directory / "cdi" / "vendor.json").write_text(json.dumps(SPEC).replace("{directory}", str(stack.directory)))
    pods = Pods(stack.runtime_service(), f"{registry}/box:1", tmp_path, handler)
    config = pods.config(f"cdi-{handler}")
    pod = pods.run(config)
    container = pods.start(pod, config, "main", "sleep 1000", CDI_devices=[cri.CDIDevice(name="vendor.com/test=full")])
    command = (
        "echo $FROM_SPEC $DEVICE; cat /opt/library/lib.so; echo; id -G; "
        "echo x > /dev/vendor0; head -c 2 /dev/vendor0 | wc -c; touch /opt/library/x"
    )
    answer = pods.exec(container, "sh", "-c", command)
    assert answer.stdout.decode().split("\n")[:4] == ["1 full", "library", "0 4444", "2"]
    assert b"No space left" in answer.stderr
    assert b"Read-only file system" in answer.stderr
    assert json.loads((stack.directory / "hooked").read_text())["id"] == container
    (stack.directory / "hooked").unlink()


def test_cdi_devices_of_annotations_and_none(stack: Stack, registry: str, tmp_path: Path) -> None:
    """An annotation asks for a device, too; one that nobody defines fails the container and is named."""
    pods = Pods(stack.runtime_service(), f"{registry}/box:1", tmp_path)
    config = pods.config("annotated")
    pod = pods.run(config)
    annotations = {"cdi.k8s.io/plugin": "vendor.com/test=full"}
    container = pods.start(pod, config, "main", "sleep 1000", annotations=annotations)
    assert pods.exec(container, "sh", "-c", "echo $DEVICE").stdout == b"full\n"
    with pytest.raises(grpc.RpcError) as caught:
        pods.create(pod, config, "none", "true", annotations={"cdi.k8s.io/plugin": "vendor.com/test=none"})
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert f"CDI device vendor.com/test=none is not defined in {stack.directory}/cdi" in str(caught.value.details())
    names = [
        one.metadata.name for one in pods.runtime.ListContainers(cri.ListContainersRequest(), timeout=30).containers
    ]
    assert "none" not in names


@pytest.mark.parametrize("handler", ["runc", "crun"])
def test_a_block_io_class(stack: Stack, registry: str, tmp_path: Path, handler: str) -> None:
    """The class of a pod's annotation throttles its containers in their cgroups."""
    pods = Pods(stack.runtime_service(), f"{registry}/box:1", tmp_path, handler)
    annotations = {"blockio.resources.beta.kubernetes.io/pod": "slow"}
    config = pods.config(f"blockio-{handler}", annotations=annotations)
    container = pods.start(pods.run(config), config, "main", "sleep 1000")
    numbers = block_device()[1]
    if os.path.isdir("/sys/fs/cgroup/blkio"):
        [group] = [path for path in cgroups_named(container) if path.is_relative_to("/sys/fs/cgroup/blkio")]
        assert (group / "blkio.throttle.read_bps_device").read_text().split() == [numbers, "5000000"]
        assert (group / "blkio.throttle.write_iops_device").read_text().split() == [numbers, "100"]
    else:
        [group] = cgroups_named(container)
        limits = (group / "io.max").read_text().split()
        assert limits[0] == numbers
        assert {"rbps=5000000", "wiops=100"} <= set(limits)


def test_a_network_device(stack: Stack, registry: str, tmp_path: Path) -> None:
    """A link of the node moves into the container under its new name, and not with a runtime that cannot."""
    (stack.directory / "cdi" / "link.yaml").write_text(json.dumps(LINK))
    subprocess.run(["ip", "link", "add", "bhcdi0", "type", "veth", "peer", "name", "bhcdi1"], check=True, timeout=30)
    device = [cri.CDIDevice(name="vendor.com/link=0")]
    old = Pods(stack.runtime_service(), f"{registry}/box:1", tmp_path, "runc")
    config = old.config("old-link")
    with pytest.raises(grpc.RpcError, match=r"vendor\.com/link=0 bring network devices") as caught:
        old.create(old.run(config), config, "main", "true", CDI_devices=device)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    pods = Pods(stack.runtime_service(), f"{registry}/box:1", tmp_path, "current")
    config = pods.config("link")
    container = pods.start(pods.run(config), config, "main", "sleep 1000", CDI_devices=device)
    assert b"vendor0:" in pods.exec(container, "cat", "/proc/net/dev").stdout
    assert subprocess.run(["ip", "link", "show", "bhcdi0"], capture_output=True, timeout=30).returncode != 0
