"""Both gRPC services answer as the CRI and images.proto say."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import grpc
import pytest

from bulkhead import paths, rpc
from bulkhead.config.model import Bulkhead, Config, Images, Registry
from bulkhead.proto import images_pb2 as run
from bulkhead.proto.images_pb2_grpc import ImagesStub
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1.api_pb2_grpc import ImageServiceStub
from image_svc.service import Service
from image_svc.unpack.client import UnpackClient
from support.fake_registry import FakeRegistry, FakeUnpack, Handler
from support.images import Image, digest


class Client:
    """Both stubs of a running service, and its stand-in for the helper."""

    def __init__(self, channel: grpc.Channel, unpack: FakeUnpack) -> None:
        self.cri = ImageServiceStub(channel)
        self.run = ImagesStub(channel)
        self.unpack = unpack

    def pull(self, name: str, timeout: float = 10.0) -> str:
        """Pull an image and return its id."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        return str(self.cri.PullImage(request, timeout=timeout).image_ref)

    def status(self, name: str, *, verbose: bool = False) -> cri.ImageStatusResponse:
        """Return an image's status."""
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name), verbose=verbose)
        return cast(cri.ImageStatusResponse, self.cri.ImageStatus(request, timeout=5))

    def code(self, method: str, request: object) -> tuple[grpc.StatusCode, str]:
        """Return how a call fails."""
        stub = self.cri if hasattr(self.cri, method) else self.run
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method)(request, timeout=5)
        return caught.value.code(), caught.value.details() or ""


@pytest.fixture
def client(tmp_path: Path, registry: FakeRegistry) -> Iterator[Client]:
    """Run the service with the fake registry's app:pinned pinned."""
    images = Images(registry=Registry(config_path=()), pinned_images={"sandbox": f"{registry.address}/app:pinned"})
    config = Config(root=tmp_path, state=tmp_path, images=images, bulkhead=Bulkhead(metrics_ports={"image-svc": -1}))
    socket = paths.service_socket(tmp_path, "image-svc")
    socket.parent.mkdir(exist_ok=True)
    unpack = FakeUnpack()
    service = Service(config, cast(UnpackClient, unpack))
    service.start()
    with rpc.channel(str(socket)) as channel:
        yield Client(channel, unpack)
    service.stop()


@pytest.fixture
def name(registry: FakeRegistry, image: Image) -> str:
    """Hold an image in the registry under two tags and return one of them."""
    registry.push("app", "1", image)
    registry.push("app", "pinned", image)
    return f"{registry.address}/app:1"


def test_status(client: Client, name: str, image: Image) -> None:
    """An absent image is an empty answer; a present one is described, in full if asked."""
    assert not client.status(name).HasField("image")

    image_id = client.pull(name)

    found = client.status(image_id[7:17], verbose=True)
    assert found.image.id == image_id
    assert found.image.uid.value == 1000
    assert not found.image.pinned
    info = json.loads(found.info["info"])
    assert info["imageSpec"]["config"]["User"] == "1000:1000"
    assert not client.status(name).info


def test_status_of_what_the_disk_lost(client: Client, name: str, tmp_path: Path) -> None:
    """An image whose configuration is gone is not present, however closely one looks, and can be pulled again."""
    image_id = client.pull(name)
    (tmp_path / "blobs" / "sha256" / image_id.removeprefix("sha256:")).unlink()

    assert not client.status(name, verbose=True).HasField("image")
    assert client.pull(name) == image_id
    assert client.status(name, verbose=True).info["info"]


def test_lists(client: Client, name: str) -> None:
    """Lists hold every image, or the one asked for, streamed or not; a pinned name shows."""
    client.pull(name)
    client.pull(name.removesuffix(":1") + ":pinned")

    (found,) = client.cri.ListImages(cri.ListImagesRequest(), timeout=30).images
    assert len(found.repo_tags) == 2
    assert found.pinned
    streamed = [each for part in client.cri.StreamImages(cri.StreamImagesRequest(), timeout=30) for each in part.images]
    assert streamed == [found]
    for wanted, count in ((name, 1), ("other", 0)):
        request = cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(image=wanted)))
        assert len(client.cri.ListImages(request, timeout=5).images) == count


def test_remove_is_idempotent(client: Client, name: str) -> None:
    """By id or by name, with all names, and again."""
    image_id = client.pull(name)
    for text in (name, name, image_id):
        client.cri.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=text)), timeout=30)
    assert not client.status(image_id).HasField("image")


def test_file_systems(client: Client, name: str, tmp_path: Path) -> None:
    """Image and container usage are told with the directory they are in."""
    client.pull(name)

    info = client.cri.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=30)

    assert [each.fs_id.mountpoint for each in info.image_filesystems] == [str(tmp_path)]
    assert info.image_filesystems[0].used_bytes.value > 10_000
    assert info.container_filesystems[0].timestamp > 0


def test_a_download_that_was_cut_counts(client: Client, name: str, tmp_path: Path) -> None:
    """What partial downloads take is part of the image file system's usage: what is allocated, holes not."""
    client.pull(name)
    (before,) = client.cri.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=30).image_filesystems
    with (tmp_path / "ingest" / "sha256-00").open("wb") as file:
        file.write(b"x" * 100_000)
        file.truncate(1 << 30)
        os.fsync(file.fileno())
    (after,) = client.cri.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=30).image_filesystems

    assert 100_000 <= after.used_bytes.value - before.used_bytes.value < 1 << 20
    assert after.inodes_used.value - before.inodes_used.value == 1


def test_prepare_and_remove(client: Client, name: str) -> None:
    """A snapshot has one plan however often it is asked for, and goes when told to."""
    image_id = client.pull(name)
    resolved = client.run.Resolve(run.ResolveRequest(image=name), timeout=30)
    assert (resolved.image_id, digest(resolved.config_json)) == (image_id, image_id)

    request = run.PrepareRequest(key="c1", image_id=image_id, manifest_digest=resolved.manifest_digest)
    first = client.run.Prepare(request, timeout=5)

    assert client.run.Prepare(request, timeout=5) == first
    assert first.mounts[0].type == "overlay"
    assert client.run.Retain(run.RetainRequest(keys=["c1", "c2"]), timeout=30).missing == ["c2"]
    for _ in range(2):
        client.run.Remove(run.RemoveRequest(key="c1"), timeout=30)
    assert client.run.Retain(run.RetainRequest(keys=["c1"]), timeout=30).missing == ["c1"]


def test_retain_drops_the_rest(client: Client, name: str) -> None:
    """A snapshot that no container uses any more goes, one that is newer than the list stays."""
    image_id = client.pull(name)
    for key in ("c1", "c2"):
        client.run.Prepare(run.PrepareRequest(key=key, image_id=image_id), timeout=30)

    client.run.Retain(run.RetainRequest(keys=["c2"], as_of=1), timeout=30)
    assert client.run.Retain(run.RetainRequest(keys=["c1", "c2"]), timeout=30).missing == []
    client.run.Retain(run.RetainRequest(keys=["c2"]), timeout=30)

    assert client.run.Retain(run.RetainRequest(keys=["c1", "c2"]), timeout=30).missing == ["c1"]


@pytest.mark.parametrize(
    ("method", "request_", "code", "words"),
    [
        ("PullImage", cri.PullImageRequest(), grpc.StatusCode.INVALID_ARGUMENT, "image.image is empty"),
        (
            "PullImage",
            cri.PullImageRequest(image=cri.ImageSpec(image="A B")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "'A B'",
        ),
        ("ImageStatus", cri.ImageStatusRequest(), grpc.StatusCode.INVALID_ARGUMENT, "image.image is empty"),
        ("RemoveImage", cri.RemoveImageRequest(), grpc.StatusCode.INVALID_ARGUMENT, "image.image is empty"),
        ("Resolve", run.ResolveRequest(image="nosuch"), grpc.StatusCode.NOT_FOUND, "'nosuch'"),
        ("Resolve", run.ResolveRequest(), grpc.StatusCode.INVALID_ARGUMENT, "image is empty"),
        ("Prepare", run.PrepareRequest(), grpc.StatusCode.INVALID_ARGUMENT, "key is empty"),
        ("Prepare", run.PrepareRequest(key="c", image_id="nosuch"), grpc.StatusCode.NOT_FOUND, "'nosuch'"),
    ],
)
def test_malformed_requests(client: Client, method: str, request_: object, code: grpc.StatusCode, words: str) -> None:
    """What cannot work is refused by name."""
    found, details = client.code(method, request_)

    assert found is code
    assert words in details


def test_hang_up_ends_the_pull(client: Client, name: str, registry: FakeRegistry, image: Image) -> None:
    """A kubelet that gives up a pull ends its downloads."""
    blob = image.blobs()[1][1]
    over = threading.Event()

    def hang(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(blob)))
        handler.end_headers()
        handler.wfile.write(blob[:100])
        over.wait(60)
        return handler.break_off()

    registry.on(digest(blob), hang)
    call = client.cri.PullImage.future(cri.PullImageRequest(image=cri.ImageSpec(image=name)), timeout=30)
    deadline = time.monotonic() + 60
    while not registry.asked(digest(blob)) and time.monotonic() < deadline:
        time.sleep(0.01)

    call.cancel()
    registry.rules.clear()

    assert client.pull(name)
    over.set()
    assert client.cri.ListImages(cri.ListImagesRequest(), timeout=30).images
