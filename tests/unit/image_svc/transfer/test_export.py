"""What is exported is what came in, and others find in it what they look for."""

import json
import os
import time

import grpc
import pytest

from bulkhead.proto import images_pb2 as pb
from support import archives
from support.archives import FULL_NAME, REF_NAME
from support.image_station import Station
from support.images import MEDIA, Image, Layer, digest


@pytest.fixture
def image(node: Station) -> Image:
    """Return an image that is here as app:1 and app:2."""
    made = Image([Layer().file("a", "lower").tar(), Layer().file("b", "upper").tar()])
    node.send(archives.tar(archives.oci(made)), pb.ImportOptions(names=["app:1", "app:2"]))
    return made


def test_oci(node: Station, image: Image) -> None:
    """A layout with the manifest as it was, the names that containerd and skopeo look for, and Docker's manifest."""
    files = archives.untar(node.export("app:1"))

    assert {name: data for name, data in files.items() if name.startswith("blobs/")} == archives.image_blobs(image)
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["digest"] == digest(image.manifest())
    assert entry["annotations"] == {FULL_NAME: "docker.io/library/app:1", REF_NAME: "1"}
    (saved,) = json.loads(files["manifest.json"])
    assert saved["RepoTags"] == ["app:1"]
    assert [digest(files[name]) for name in saved["Layers"]] == [digest(blob) for blob in image.blobs()[1]]
    assert files[saved["Config"]] == image.blobs()[0]


def test_the_same_bytes_for_the_same_image(node: Station, image: Image) -> None:
    """Two exports are equal, and as long as was said."""
    answers = list(node.stub.Export(pb.ExportRequest(images=["app:1"]), timeout=30))
    data = b"".join(each.data for each in answers)
    assert answers[0].total == len(data)
    assert data == node.export("app:1")


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stands still"])
def test_a_caller_that_does_not_take_it(node: Station, monkeypatch: pytest.MonkeyPatch, leaves: bool) -> None:
    """Whoever hangs up in the middle, or takes no more until the time is over, holds no blob any longer."""
    node.send(archives.tar(archives.oci(Image([Layer().file("a", os.urandom(40 << 20)).tar()]))))
    monkeypatch.setattr("image_svc.rpc.management._ARCHIVE_TIMEOUT", 20.0 if leaves else 0.7)
    call = node.stub.Export(pb.ExportRequest(images=["app:1"]), timeout=30)
    assert next(call).total > 40 << 20
    assert node.parts.leases._claims
    if leaves:
        call.cancel()
    until = time.monotonic() + 8
    while node.parts.leases._claims and time.monotonic() < until:
        time.sleep(0.02)
    assert not node.parts.leases._claims
    call.cancel()


def test_docker_archive(node: Station, image: Image) -> None:
    """docker save's own form, which imports again as the same image under both tags of an id."""
    data = node.export(digest(image.blobs()[0]), format=pb.ExportRequest.DOCKER_ARCHIVE)
    (saved,) = json.loads(archives.untar(data)["manifest.json"])
    assert saved["RepoTags"] == ["app:1", "app:2"]
    node.stub.Delete(pb.DeleteRequest(image="app:1"), timeout=30)
    node.stub.Delete(pb.DeleteRequest(image="app:2"), timeout=30)
    result = node.send(data)
    assert [each.id for each in result.images] == [digest(image.blobs()[0])]


def test_round_trip_of_all_platforms(node: Station) -> None:
    """An index goes out whole and comes in whole."""
    images = [Image([Layer().file("a", name).tar()], architecture=name) for name in ("amd64", "arm64", "s390x")]
    index = archives.index_of(images)
    described = archives.entry(index, MEDIA["oci"]["index"], **{FULL_NAME: "x.io/multi:1"})
    blobs = {archives.blob_name(digest(index)): index}
    for each in images:
        blobs |= archives.image_blobs(each)
    everything = pb.Platforms(all=True)
    node.send(archives.tar(archives.layout([described], blobs)), pb.ImportOptions(platforms=everything))

    data = node.export("x.io/multi:1", platforms=everything)
    files = archives.untar(data)
    assert {name: files[name] for name in files if name.startswith("blobs/")} == blobs
    node.stub.Delete(pb.DeleteRequest(image="x.io/multi:1"), timeout=30)
    assert node.blobs() == set()
    assert node.send(data, pb.ImportOptions(platforms=everything)).digest == digest(index)

    # With the machine's platform alone the index is in it too: its digest is what pods are pinned to.
    own = archives.untar(node.export("x.io/multi:1"))
    assert archives.blob_name(digest(index)) in own
    assert archives.blob_name(digest(images[1].manifest())) not in own
    node.stub.Delete(pb.DeleteRequest(image="x.io/multi:1"), timeout=30)
    assert node.send(archives.tar(own)).digest == digest(index)


def test_missing_layers_are_named(node: Station, image: Image) -> None:
    """An image whose layers were discarded cannot leave, and the error says which they are."""
    _, layers = image.blobs()
    node.parts.content.remove(digest(layers[1]))
    with pytest.raises(grpc.RpcError) as caught:
        node.export("app:1")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert digest(layers[1]) in (caught.value.details() or "")
    assert digest(layers[0]) not in (caught.value.details() or "")


def test_unknown(node: Station) -> None:
    """What is not here is named, and nothing at all is refused."""
    with pytest.raises(grpc.RpcError, match="nope"):
        node.export("nope:1")
    with pytest.raises(grpc.RpcError, match="at least one"):
        node.export()
