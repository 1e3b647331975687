"""Images of other images' layers: descriptors, who may ask, and how an evicted image becomes content again."""

from collections.abc import Callable

import grpc
import pytest

from bulkhead.proto import images_pb2 as pb
from image_svc.transfer import convert
from image_svc.transfer.ciphering import Turned
from support import archives
from support.image_station import Station
from support.images import MEDIA, Image, Layer, digest

ENC = "org.opencontainers.image.enc."


@pytest.fixture
def here(node: Station) -> Image:
    """Have an image of two layers here as app:1."""
    image = Image([Layer().file("a", "lower").tar(), Layer().file("b", "upper").tar()])
    node.send(archives.tar(archives.oci(image)))
    return image


def test_dockers_types() -> None:
    """Docker's layer types become OCI's, by compression and kind; others stay."""
    for way in ("gzip", "zstd", "plain"):
        assert convert.oci_type(MEDIA["docker"][way]) == MEDIA["oci"][way]
        assert convert.oci_type(MEDIA["oci"][way]) == MEDIA["oci"][way]
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    assert convert.oci_type(foreign) == "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


def test_a_turned_layers_descriptor() -> None:
    """Type, digest and size are the new ones; annotations of encryption are replaced, others kept; other places go."""
    old = {
        "mediaType": "t",
        "digest": "d",
        "size": 1,
        "urls": ["u"],
        "data": "x",
        "annotations": {"a": "b", f"{ENC}c": "d"},
    }
    sealed = convert._layer(dict(old), Turned("e", 2, "t+encrypted", {f"{ENC}k": "v"}))
    assert sealed == {"mediaType": "t+encrypted", "digest": "e", "size": 2, "annotations": {"a": "b", f"{ENC}k": "v"}}
    plain = convert._layer({**old, "annotations": {f"{ENC}c": "d"}}, Turned("f", 3, "t"))
    assert plain == {"mediaType": "t", "digest": "f", "size": 3}
    assert convert._layer(dict(old), None) == old


def test_an_indexs_entry() -> None:
    """Only the entry of a manifest that changed does, and keeps its platform and annotations."""
    entry = {"mediaType": "m", "digest": "d", "size": 1, "platform": {"os": "linux"}, "annotations": {"a": "b"}}
    assert convert._replaced(entry, {"x": ("e", 2, "n")}) is entry
    assert convert._replaced(entry, {"d": ("e", 2, "n")}) == {**entry, "mediaType": "n", "digest": "e", "size": 2}


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return how a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def test_decrypting_takes_a_grant_of_roots(node: Station, here: Image) -> None:
    """Whoever may use the socket may not thereby take an image out of its encryption."""
    code, _ = refusal(lambda: list(node.stub.Decrypt(pb.DecryptImageRequest(image="app:1", name="x"), timeout=30)))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    request = pb.DecryptImageRequest(image="app:1", name="x", grant="g")
    code, said = refusal(lambda: list(node.stub.Decrypt(request, timeout=30)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "none of them is encrypted" in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "recipients is empty"),
        ({"recipients": [pb.ImageRecipient(scheme="rot13", key=b"k")]}, "scheme 'rot13'"),
        ({"recipients": [pb.ImageRecipient(scheme="jwe", key=b"x" * (3 << 20))]}, "at most"),
        ({"layers": [2]}, "layer 2: linux/amd64 has 2 layers"),
        ({"layers": [-3]}, "layer -3"),
        ({"name": f"app@{digest(b'')}"}, "has a digest"),
        ({"platforms": pb.Platforms(names=["a/b/c/d"])}, "platform"),
    ],
)
def test_orders_that_make_no_sense(node: Station, here: Image, fields: dict[str, object], said: str) -> None:
    """A malformed order is refused by the field that is wrong, before the decryptor hears of it."""
    good = {"image": "app:1", "name": "x", "recipients": [pb.ImageRecipient(scheme="jwe", key=b"k")]}
    order = {**good, **fields} if fields else {"image": "app:1", "name": "x"}
    code, text = refusal(lambda: list(node.stub.Encrypt(pb.EncryptImageRequest(**order), timeout=30)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in text


def test_a_demoted_name_is_content(node: Station, here: Image) -> None:
    """Every name of an image made content again, the image is none of the CRI's, and its blobs are kept."""
    store, manifest = node.parts.store, digest(here.manifest())
    blobs = {manifest, *node.blobs()}
    before = [chain for chain, _, _ in store.layers_of_only([manifest])]
    assert len(before) == 2
    assert store.layers_of_only(["sha256:" + "0" * 64]) == []
    for name in list(store.targets()):
        store.demote(name, manifest, blobs)
    store.demote("docker.io/library/other:1", manifest, blobs)

    assert node.parts.catalogue.images() == []
    assert {row.name for row in store.content_names()} == {"docker.io/library/app:1", *_by_digest(store.targets())}
    assert node.blobs() == blobs
    assert all(store.layer(chain) is None for chain in before)


def _by_digest(names: dict[str, str]) -> set[str]:
    return {name for name in names if "@" in name}
