"""CheckpointContainer on a whole stack: a real dump where CRIU works, and its own reason where it does not."""

import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from bulkhead import ttrpc
from bulkhead.errors import NotFound
from bulkhead.proto.containerd import task_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from sandbox_svc.checkpoint import criu, under_way
from support.images import Image, Layer, Pusher, busybox_layer
from support.pods import Pods
from support.stack import Stack

pytestmark = pytest.mark.root

#: Counts in memory and into the rootfs, and changes the rootfs in every other way that a layer has a word for.
PROGRAM = """
rm /etc/gone; mkdir -p /new/dir; ln -s ../etc /new/link; echo hello > /new/file; ln /new/file /new/hard
chmod 4711 /new/file; echo started
i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.1; done
"""

#: runc, but that its dump takes longer than any test, and says when it has begun: what a real one does depends on CRIU.
SLOW = """#!/bin/sh
previous=
for argument; do
    if [ "$previous" = --image-path ]; then : > "$argument/begun"; sleep 997; exit 1; fi
    previous=$argument
done
exec /usr/sbin/runc "$@"
"""
#: Heeds SIGTERM a moment later, as a program does that has something to put away.
HEEDS = "trap 'sleep 0.3; echo heeded; exit 7' TERM; echo started; while :; do sleep 0.1; done"


@dataclass
class Node:
    stack: Stack
    pods: Pods
    pod: str
    config: cri.PodSandboxConfig
    container: str
    directory: Path

    def checkpoint(self, container: str, location: Path | str, timeout: int = 60) -> None:
        request = cri.CheckpointContainerRequest(container_id=container, location=str(location), timeout=timeout)
        self.stack.runtime_service().CheckpointContainer(request, timeout=120)

    def counts(self) -> bool:
        """Whether the container's program goes on."""
        first = self.pods.exec(self.container, "cat", "/count").stdout
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.pods.exec(self.container, "cat", "/count").stdout not in (first, b""):
                return True
            time.sleep(0.1)
        return False


@pytest.fixture(scope="module")
def node(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    pusher = Pusher(registry)
    pusher.image("box", "checkpoint", Image([busybox_layer(), Layer().dir("etc").file("etc/gone", "x").tar()], {}))
    directory = tmp_path_factory.mktemp("checkpoint")
    slow = tmp_path_factory.mktemp("slow") / "runc"
    slow.write_text(SLOW)
    slow.chmod(0o755)
    more = f"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.slow.options]\nBinaryName = \"{slow}\""
    with Stack(registry, number=83, default="runc", more=more) as stack:
        image = f"{registry}/box:checkpoint"
        stack.image_service().PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=image)), timeout=60)
        pods = Pods(stack.runtime_service(), image, directory)
        config = pods.config("checkpoint")
        pod = pods.run(config)
        container = pods.start(pod, config, "main", PROGRAM)
        made = Node(stack, pods, pod, config, container, directory)
        deadline = time.monotonic() + 60
        while b"started" not in (directory / "main.log").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield made


def refused(node: Node, container: str, location: Path | str, timeout: int = 60) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        node.checkpoint(container, location, timeout)
    return caught.value.code(), str(caught.value.details())


def test_a_checkpoint_or_the_reason(node: Node) -> None:
    """Where CRIU works there is an archive that checkpointctl reads; else FAILED_PRECONDITION in CRIU's own words.

    In both cases the container goes on, and nothing of the attempt is left.
    """
    location = node.directory / "checkpoint.tar"
    if trouble := criu.trouble():
        code, details = refused(node, node.container, location)
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert f"CRIU does not work on this machine: {trouble}" in details
        assert not location.exists()
    else:
        node.checkpoint(node.container, location)
        check(node, location)
    assert node.counts()
    assert list(node.directory.glob("*.part")) == []
    left = node.stack.directory / "root" / "io.bulkhead" / "containers" / node.container
    assert not (left / "checkpoint").exists()


def check(node: Node, location: Path) -> None:
    assert location.stat().st_mode & 0o777 == 0o600
    with tarfile.open(location) as archive:
        names = set(archive.getnames())
        documents = {name: json.load(archive.extractfile(name)) for name in ("config.dump", "spec.dump", "status.dump")}  # type: ignore[arg-type]
        assert b"started" in archive.extractfile("container.log").read()  # type: ignore[union-attr]
        assert json.load(archive.extractfile("deleted.files")) == ["/etc/gone"]  # type: ignore[arg-type]
        with tarfile.open(fileobj=archive.extractfile("rootfs-diff.tar")) as diff:
            changed = {entry.name: entry for entry in diff.getmembers()}
    assert {"checkpoint/inventory.img", "checkpoint/descriptors.json", "dump.log", "stats-dump", "status"} <= names
    assert any(name.startswith("checkpoint/pages-") for name in names)
    assert documents["config.dump"]["id"] == node.container
    assert documents["status.dump"]["state"] == cri.CONTAINER_RUNNING
    assert documents["spec.dump"]["annotations"]["io.kubernetes.cri.container-name"] == "main"
    assert {"etc/.wh.gone", "count", "new/dir", "new/link"} <= changed.keys()
    assert changed["new/link"].linkname == "../etc"
    pair = [changed["new/file"], changed["new/hard"]]
    assert sorted(entry.islnk() for entry in pair) == [False, True]
    assert next(entry for entry in pair if entry.isreg()).mode == 0o4711
    tree = read(location, "inspect", "--ps-tree", "--metadata")
    assert "[1]" in tree or "sh" in tree, tree


def read(location: Path, *command: str) -> str:
    """Return what checkpointctl says of an archive."""
    program = build("checkpointctl")["checkpointctl"]
    done = subprocess.run([program, *command, location], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_cannot_be_checkpointed(node: Node, tmp_path: Path) -> None:
    """A bad location, a container that does not run and one that is not there are named, with the right code."""
    code, details = refused(node, "0" * 64, tmp_path / "x")
    assert code == grpc.StatusCode.NOT_FOUND
    code, details = refused(node, node.container, "localhost/image:tag")
    assert (code, "absolute path" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    (tmp_path / "link").symlink_to("/etc/passwd")
    for location in (tmp_path, tmp_path / "none" / "x", tmp_path / "link", "/dev/null", f"{tmp_path}/../x"):
        code, details = refused(node, node.container, location)
        assert (code, "location" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), (location, details)
    code, details = refused(node, node.container, tmp_path / "x", timeout=-1)
    assert (code, "timeout" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    created = node.pods.create(node.pod, node.config, "created", "true")
    code, details = refused(node, created, tmp_path / "x")
    assert (code, "CONTAINER_CREATED" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    assert os.listdir(tmp_path) == ["link"]


def test_a_runtime_without_criu(node: Node) -> None:
    """Debian 12's crun has no CRIU built in: the call says so before anything is frozen."""
    if b"+CRIU" in subprocess.run(["crun", "--version"], capture_output=True, check=True, timeout=30).stdout:
        pytest.skip("probe: crun --version says +CRIU")
    pods = Pods(node.stack.runtime_service(), node.pods.image, node.directory, handler="crun")
    config = pods.config("crun")
    container = pods.start(pods.run(config), config, "other", "sleep 1000")
    code, details = refused(node, container, node.directory / "crun.tar")
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "/crun was built without CRIU" in details


def test_a_container_left_frozen_is_thawed(node: Node) -> None:
    """A container that a checkpoint had frozen when sandbox-svc was killed runs again after the restart."""
    [freezer] = [
        place
        for root in ("/sys/fs/cgroup/freezer", "/sys/fs/cgroup")
        for place in Path(root).glob(f"*/{node.container}")
        if (place / "freezer.state").exists() or (place / "cgroup.freeze").exists()
    ]
    state, frozen = ("freezer.state", "FROZEN") if (freezer / "freezer.state").exists() else ("cgroup.freeze", "1")
    pause(node)
    assert (freezer / state).read_text().strip() == frozen
    old = node.stack.kill("sandbox-svc")
    node.stack.wait_restarted("sandbox-svc", old)
    deadline = time.monotonic() + 60
    while (freezer / state).read_text().strip() == frozen:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert node.counts()


def frozen_state(container: str) -> str:
    """Return what the freezer of a container's cgroup says, of either version; "" where the group is gone."""
    for pattern in (f"freezer/*/{container}/freezer.state", f"*/{container}/cgroup.freeze"):
        for file in Path("/sys/fs/cgroup").glob(pattern):
            return file.read_text().strip()
    return ""


@pytest.mark.parametrize("way", ["stop", "stop-pod", "remove"])
def test_a_stop_wins_over_a_long_dump(node: Node, way: str) -> None:
    """A container that is frozen for a dump without end is thawed, heeds its stop signal, and is gone in seconds.

    The container, its cgroup and its freezer are real; the dump is a process of the runtime that sleeps.
    """
    pods = Pods(node.stack.runtime_service(), node.pods.image, node.directory, handler="slow")
    config = pods.config(way)
    pod = pods.run(config)
    container = pods.start(pod, config, way, HEEDS)
    log, location = node.directory / f"{way}.log", node.directory / f"{way}.tar"
    images = node.stack.directory / "root" / "io.bulkhead" / "containers" / container / "checkpoint" / "checkpoint"
    wait_for(lambda: b"started" in log.read_bytes())
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(refused, node, container, location)
        wait_for(lambda: (images / "begun").exists())
        assert frozen_state(container) in ("FROZEN", "1")
        began = time.monotonic()
        if way == "stop":
            pods.stop(container, grace=25)
        elif way == "stop-pod":
            pods.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
        else:
            pods.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=60)
        took = time.monotonic() - began
        code, details = made.result(60)
    # Less than a stop waits for a dump that does not give way, and than this one's grace.
    assert took < under_way.PATIENCE
    assert (code, "is being stopped" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True), details
    if way != "remove":
        assert pods.status(container).exit_code == (7 if way == "stop" else 137)
    assert (b"heeded" in log.read_bytes()) == (way == "stop")
    wait_for(lambda: not subprocess.run(["pgrep", "-f", "^sleep 997$"], capture_output=True, timeout=30).stdout)
    assert (location.exists(), images.exists()) == (False, False)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pause(node: Node) -> None:
    """Freeze the container as a checkpoint does: by its shim's Pause."""
    for socket in (node.stack.directory / "state" / "io.bulkhead" / "s").glob("*/task"):
        client = ttrpc.Client(str(socket))
        try:
            client.call("containerd.task.v3.Task", "Pause", task_pb2.PauseRequest(id=node.container), Empty, 10)
            return
        except NotFound:
            continue
        finally:
            client.close()
    raise AssertionError("no shim has the container")
