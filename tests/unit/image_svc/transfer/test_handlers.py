"""Images that are brought by hand to where the containers of a runtime handler have theirs."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.config.model import ProxyPlugin, Runtime, RuntimeHandler
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto.containerd import snapshots_pb2
from support import archives
from support.fake_registry import FakeRegistry
from support.fake_snapshots import ROOT, FakeSnapshots, fake_snapshots
from support.image_station import Station, station
from support.images import Image, Layer
from support.proxied_node import Applying, chain


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeSnapshots]:
    """Run a snapshotter."""
    with fake_snapshots(tmp_path / "snapshots.sock") as made:
        yield made


@pytest.fixture
def node(tmp_path: Path, fake: FakeSnapshots) -> Iterator[Station]:
    """Run a service that knows the handlers runc, with the node's snapshotter, and lazy, with that one."""
    handlers = {"runc": RuntimeHandler(), "lazy": RuntimeHandler(name="lazy", snapshotter="fake")}
    tables = {
        "runtime": Runtime(runtimes=handlers),
        "proxy_plugins": {"fake": ProxyPlugin("snapshot", str(tmp_path / "snapshots.sock"), {"root": ROOT})},
    }
    with station(tmp_path, config=tables, helper=Applying()) as made:
        yield made


@pytest.fixture
def image() -> Image:
    """Return an image of two layers."""
    return Image([Layer().file(name, name).tar() for name in ("one", "two")])


def test_pull(node: Station, fake: FakeSnapshots, registry: FakeRegistry, image: Image) -> None:
    """Without a handler the layers are among the node's own; with one they are in its snapshotter, too."""
    registry.push("app", "1", image)
    name = f"{registry.address}/app:1"
    assert node.images("pull", name).status == 0
    assert fake.names(snapshots_pb2.COMMITTED) == set()
    assert node.images("pull", "--runtime-handler", "lazy", name).status == 0
    assert fake.names(snapshots_pb2.COMMITTED) == set(chain(image))
    assert len(node.parts.store.layer_names()) == 2


def test_import(node: Station, fake: FakeSnapshots, image: Image, tmp_path: Path) -> None:
    """An archive is unpacked into the handler's snapshotter, and there alone."""
    tar = tmp_path / "image.tar"
    tar.write_bytes(archives.tar(archives.oci(image)))
    assert node.images("import", "--runtime-handler", "lazy", str(tar)).out == "docker.io/library/app:1\n"
    assert fake.names(snapshots_pb2.COMMITTED) == set(chain(image))
    assert node.parts.store.layer_names() == []
    assert "docker.io/library/app:1" in node.listed()


def test_the_default_handlers_snapshotter(tmp_path: Path, fake: FakeSnapshots, image: Image) -> None:
    """Where no handler is named the default one counts, as it does for the kubelet."""
    tables = {
        "runtime": Runtime(runtimes={"runc": RuntimeHandler(snapshotter="fake")}),
        "proxy_plugins": {"fake": ProxyPlugin("snapshot", str(tmp_path / "snapshots.sock"), {"root": ROOT})},
    }
    with station(tmp_path, config=tables, helper=Applying()) as node:
        node.send(archives.tar(archives.oci(image)))
    assert fake.names(snapshots_pb2.COMMITTED) == set(chain(image))


def test_a_handler_that_is_not_there(node: Station, registry: FakeRegistry, image: Image) -> None:
    """It is refused with those there are, before a registry is asked; and one for nothing to unpack is refused."""
    for request, text in (
        (pb.PullRequest(image=f"{registry.address}/app:1", runtime_handler="kata"), "'kata'.*there are lazy, runc"),
        (pb.PullRequest(image=f"{registry.address}/app:1", runtime_handler="lazy", no_unpack=True), "nothing is to be"),
    ):
        with pytest.raises(grpc.RpcError, match=text) as caught:
            list(node.stub.Pull(request, timeout=30))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not registry.asked("/v2/")
    data = archives.tar(archives.oci(image))
    with pytest.raises(grpc.RpcError, match="'kata'"):
        node.send(data, pb.ImportOptions(runtime_handler="kata"))
    assert node.images("pull", "--no-unpack", "--handler", "lazy", "x").status == 2
