"""Archives on a node whose disk is small and whose image-svc is killed, with the real helper."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from bulkhead import paths, rpc
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto.images_pb2_grpc import ManagementStub
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support import archives
from support.images import Image, Layer
from support.pods import Pods
from support.stack import BIN, Stack

pytestmark = pytest.mark.root

#: Bytes of the file system that images are on.
DISK = 48 << 20


@dataclass
class Node:
    """A stack whose images are on a file system of their own."""

    stack: Stack

    @property
    def root(self) -> Path:
        """Where images are."""
        return self.stack.directory / "root" / "io.bulkhead"

    def command(self, verb: str, *arguments: str) -> list[str]:
        """Return the command line of a verb."""
        return [str(BIN / "bulkhead"), "images", verb, "--socket", str(self.socket), *arguments]

    def run(self, verb: str, *arguments: str, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run a verb."""
        return subprocess.run(self.command(verb, *arguments), input=data, capture_output=True, timeout=60, check=False)

    def names(self) -> list[str]:
        """Return every name, of content too."""
        found = self.ask("List", pb.ListRequest()).images
        return sorted(name for image in found for name in image.repo_tags)

    def left(self) -> dict[str, int]:
        """Return how many blobs, layers and partial downloads are on disk, after the collector."""
        counts: dict[str, int] = {}
        until = time.monotonic() + 60
        while time.monotonic() < until:
            usage = self.ask("Usage", pb.UsageRequest())
            counts = {"blobs": usage.blobs.count, "layers": usage.layers.count, "partial": usage.partial.count}
            counts["blobs"] = max(counts["blobs"], len(list((self.root / "blobs" / "sha256").iterdir())))
            counts["layers"] = max(counts["layers"], len(list((self.root / "snapshots").glob("[0-9]*"))))
            if not any(counts.values()):
                break
            time.sleep(0.05)
        return counts

    def ask(self, method: str, request: Any) -> Any:
        """Make a call over a connection of its own: image-svc is killed now and then, and programs are started."""
        with rpc.channel(str(self.socket)) as channel:
            return getattr(ManagementStub(channel), method)(request, timeout=60, wait_for_ready=True)

    @property
    def socket(self) -> Path:
        """image-svc's socket."""
        return paths.service_socket(self.stack.directory / "state" / "io.bulkhead", "image-svc")


@pytest.fixture(scope="module")
def node(registry: str) -> Iterator[Node]:
    """Run a stack on a small disk."""
    stack = Stack(registry, number=78)
    place = stack.directory / "root"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0711", "bhsmall", str(place)], check=True)
    try:
        with stack:
            yield Node(stack)
            assert stack.stop() == 0
            subprocess.run(["umount", str(place)], check=True)
    finally:
        if place.is_mount():
            subprocess.run(["umount", str(place)], check=False)
        shutil.rmtree(stack.directory, ignore_errors=True)


def archive(*sizes: int, name: str) -> bytes:
    """Return an archive of an image with plain layers of about those sizes."""
    block = os.urandom(1 << 20)
    layers = [Layer().file(f"f{n}", (block * 64)[:size]).tar() for n, size in enumerate(sizes)]
    return archives.tar(archives.oci(Image(layers, compression="plain"), f"docker.io/library/{name}:1"))


def nothing() -> dict[str, int]:
    """Return what is left of nothing."""
    return {"blobs": 0, "layers": 0, "partial": 0}


@pytest.mark.parametrize(
    "sizes",
    [(60 << 20,), (9 << 20,) * 6, (14 << 20, 14 << 20)],
    ids=["a file larger than the disk", "files that fill it", "layers that fill it unpacked"],
)
def test_a_full_disk(node: Node, sizes: tuple[int, ...]) -> None:
    """The import fails with how much is missing where, leaves nothing, and what fits is taken in at once afterwards."""
    done = node.run("import", "-", data=archive(*sizes, name="large"))
    text = done.stderr.decode()
    assert done.returncode == 7, text
    assert f"bytes are missing on the file system of {node.root}" in text
    assert int(text.rpartition("at least ")[2].split()[0]) > 0
    assert node.left() == nothing()

    assert node.run("import", "-", data=archive(4 << 20, name="small")).returncode == 0
    assert node.names() == ["docker.io/library/small:1"]
    assert node.run("rm", "small:1").returncode == 0
    assert node.left() == nothing()


def test_removal_on_a_disk_without_a_byte(node: Node) -> None:
    """An image goes, with its blobs and layers, where the disk has no room for the records of that, twice over."""
    for _ in range(2):
        assert node.run("import", "-", data=archive(4 << 20, 4 << 20, name="old")).returncode == 0
        filler = node.root / "filler"
        fill(filler)
        try:
            done = node.run("rm", "old:1")
            assert done.returncode == 0, done.stderr
            assert node.left() == nothing()
        finally:
            filler.unlink()
        wait_for(lambda: size(node.root / "image-svc" / "images.reserve", blocks=True) >= 1 << 20)


def test_pods_on_a_disk_without_a_byte(node: Node, registry: str, tmp_path: Path) -> None:
    """What runs there can be stopped and removed by the CRI, its image as well; what is new is refused by name."""
    image, names = f"{registry}/busybox:2", [f"{registry}/pause:1", f"{registry}/busybox:2"]
    assert node.run("pull", *names).returncode == 0
    pods = Pods(node.stack.runtime_service(), image, tmp_path)
    config = pods.config("full")
    pod = pods.run(config)
    container = pods.start(pod, config, "main", "sleep 1000")
    filler = node.root / "filler"
    fill(filler)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            pods.run(pods.config("another"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        runtime, service = node.stack.runtime_service(), node.stack.image_service()
        runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=1), timeout=60)
        runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=60)
        runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
        runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=60)
        for name in names:
            service.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)), timeout=60)
        assert node.left() == nothing()
    finally:
        filler.unlink()


def fill(path: Path) -> None:
    """Write a file until the disk has no room left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_killed_in_mid_import(node: Node) -> None:
    """image-svc killed with half an archive taken in: the command says so, the next start leaves nothing of it."""
    data = archive(3 << 20, 3 << 20, 3 << 20, name="cut")
    child = subprocess.Popen(
        node.command("import", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.write(data[: 7 << 20])
    child.stdin.flush()
    ingest = node.root / "ingest"
    # The second layer is on its way, the first one is a blob with a record.
    wait_for(lambda: any(size(each) > 1 << 19 for each in ingest.glob("import-*")))
    wait_for(lambda: list((node.root / "blobs" / "sha256").iterdir()))
    node.stack.wait_restarted("image-svc", node.stack.kill("image-svc"))
    out, error = child.communicate(timeout=60)
    assert (child.returncode, out) == (5, b"")
    assert b"went away" in error
    assert node.names() == []
    assert node.left() == nothing()

    assert node.run("import", "-", data=data).stdout == b"docker.io/library/cut:1\n"
    node.run("rm", "cut:1")
    assert node.left() == nothing()


def test_exports_that_nobody_takes(node: Node) -> None:
    """A pipe that is closed and disks that are full: a status, a line, and no part of a file."""
    assert node.run("import", "-", data=archive(4 << 20, 4 << 20, name="out")).returncode == 0
    with tempfile.TemporaryDirectory(prefix="bhout") as text:
        place = Path(text)
        reader, writer = os.pipe()
        child = subprocess.Popen(node.command("export", "-", "out:1"), stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        os.read(reader, 1000)
        os.close(reader)
        error = child.communicate(timeout=60)[1]
        assert (child.returncode, error.count(b"\n")) == (141, 1), error

        done = node.run("export", "/dev/full", "out:1")
        assert (done.returncode, b"/dev/full: No space left" in done.stderr) == (7, True)

        small = place / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "bhsmall", str(small)], check=True)
        try:
            done = node.run("export", str(small / "out.tar"), "out:1")
            assert (done.returncode, os.listdir(small)) == (7, []), done.stderr
            done = node.run("export", "--directory", str(small / "layout"), "out:1")
            assert (done.returncode, os.listdir(small / "layout")) == (7, []), done.stderr
        finally:
            subprocess.run(["umount", str(small)], check=True)
    assert node.run("rm", "out:1").returncode == 0
    assert node.left() == nothing()


def size(path: Path, *, blocks: bool = False) -> int:
    """Return how long a file is, or how much of the disk it has; 0 for one that was renamed or is made anew."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    return status.st_blocks * 512 if blocks else status.st_size


def wait_for(true: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
