"""What a disk lost is found by whoever needs it, put aside, and brought again by the next pull."""

import os

import pytest

from bulkhead.errors import NotFound
from support.fake_registry import FakeRegistry
from support.image_node import Node
from support.images import Image, Layer, digest


@pytest.mark.parametrize("state", ["missing", "not whole"])
def test_lost_layer_is_unpacked_again(node: Node, registry: FakeRegistry, image: Image, state: str) -> None:
    """A pull of an image that is here finds that a layer's directory is not, and makes that one layer anew."""
    registry.push("app", "1", image)
    name = f"{registry.address}/app:1"
    node.pull(name)
    node.unpack.settled.remove("2")
    if state == "missing":
        del node.unpack.trees["2"]
    node.unpack.calls.clear()
    registry.seen.clear()

    node.pull(name)

    assert len([call for call in node.unpack.calls if call[0] == "unpack"]) == 1
    assert not registry.asked("/blobs/")
    chain = [each.name for each in node.store.chain(node.catalogue.images()[0].chain_id) or ()]
    assert chain[0] == 1
    assert chain[1] > 3


def test_images_without_their_layers_are_forgotten(node: Node, registry: FakeRegistry, image: Image) -> None:
    """The kubelet pulls what is not listed; what is whole stays."""
    registry.push("app", "1", image)
    image_id = node.pull(f"{registry.address}/app:1")
    assert node.damage.layers() == []

    node.unpack.settled.remove("3")

    assert node.damage.layers() == [image_id]
    assert node.catalogue.images() == []
    assert ("remove", "3") in node.unpack.calls
    assert node.damage.layers() == []


def test_layer_that_is_recorded_meanwhile_stays(node: Node, registry: FakeRegistry, image: Image) -> None:
    """What another pull commits after the look at the directories is not taken for lost."""
    registry.push("app", "1", image)
    registry.push("other", "1", Image([Layer().file("other", "x").tar()]))
    node.pull(f"{registry.address}/app:1")
    node.unpack.settled.remove("3")
    look = node.unpack.list

    def late() -> list[tuple[str, bool]]:
        found = look()
        node.pull(f"{registry.address}/other:1")
        return found

    node.unpack.list = late  # type: ignore[method-assign]

    assert len(node.damage.layers()) == 1
    assert [image.names[0] for image in node.catalogue.images()] == [f"{registry.address}/other:1"]


@pytest.mark.parametrize("harm", ["cut", "other bytes", "gone"])
def test_damaged_blob_is_fetched_again(node: Node, registry: FakeRegistry, image: Image, harm: str) -> None:
    """A blob that lost bytes, or has others, is fetched again when its layer is needed, and is then as it was."""
    registry.push("app", "1", image)
    name = f"{registry.address}/app:1"
    node.pull(name)
    blob = image.blobs()[1][1]
    path = node.content.path(digest(blob))
    if harm == "cut":
        os.truncate(path, len(blob) // 2)
    elif harm == "other bytes":
        path.write_bytes(bytes(len(blob)))
    else:
        path.unlink()
    del node.unpack.trees["2"]
    registry.seen.clear()

    node.pull(name)

    assert len(registry.asked(digest(blob))) == 1
    assert path.read_bytes() == blob
    damaged = [entry.name for entry in node.content.partials()]
    assert len(damaged) == (harm == "other bytes")
    assert all(each.endswith(".damaged") for each in damaged)


@pytest.mark.parametrize("harm", [b"{}", b"", None])
def test_damaged_configuration(node: Node, registry: FakeRegistry, image: Image, harm: bytes | None) -> None:
    """It is never handed out; the image is not listed any more, and pulled again it is whole."""
    registry.push("app", "1", image)
    name = f"{registry.address}/app:1"
    image_id = node.pull(name)
    assert node.damage.configuration(image_id) == image.blobs()[0]
    path = node.content.path(image_id)
    path.unlink() if harm is None else path.write_bytes(harm)

    with pytest.raises(NotFound, match="pull the image again"):
        node.damage.configuration(image_id)

    assert node.catalogue.images() == []
    assert node.pull(name) == image_id
    assert node.damage.configuration(image_id) == image.blobs()[0]
