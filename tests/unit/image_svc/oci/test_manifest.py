"""Whatever a registry serves as an index, a manifest or a configuration: it is read, or refused by name."""

import contextlib
import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import BulkheadError
from image_svc.oci import manifest, media
from image_svc.oci.manifest import Manifest
from image_svc.oci.platforms import Platform

HOST = Platform("linux", "amd64")
SHA = "sha256:" + "0" * 64

INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "manifests": [
        {"mediaType": media.OCI_MANIFEST, "digest": SHA, "size": 7, "platform": {"os": "linux", "architecture": arch}}
        for arch in ("amd64", "arm64")
    ],
}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": media.OCI_MANIFEST,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": SHA, "size": 3},
    "layers": [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": SHA,
            "size": 5,
            "annotations": {"a": "b"},
        }
    ],
}
CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"User": "1000:1000", "Env": ["A=b"]},
    "rootfs": {"type": "layers", "diff_ids": [SHA]},
}

#: Anything that JSON can hold, and values that fields might be mistaken for.
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from([SHA, "sha512:" + "0" * 128, "sha256:../../etc", -1, 2**63, 10**400, media.OCI_INDEX, "linux"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return every place in a document, as its container and key."""
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [(tree, key) for key, _ in pairs] + [place for _, value in pairs for place in places(value)]


@st.composite
def spoiled(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """Return a sound document with one to three of its values replaced or removed."""
    tree = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        found = places(tree)
        if not found:
            break
        container, key = draw(st.sampled_from(range(len(found))).map(found.__getitem__))
        if draw(st.booleans()):
            container[key] = draw(VALUES)
        else:
            del container[key]
    return tree


def everything(data: bytes) -> None:
    """Read a document in each of the ways there are."""
    tree = manifest.load_json(data, "x")
    with contextlib.suppress(BulkheadError):
        manifest.kind_of(tree, media.OCI_MANIFEST, "x")
    with contextlib.suppress(BulkheadError):
        found = manifest.choose(tree, HOST, "x")
        assert found.digest.partition(":")[0] in ("sha256", "sha512")
    parsed = manifest.parse(MANIFEST, "x")
    with contextlib.suppress(BulkheadError):
        parsed = manifest.parse(tree, "x")
        assert isinstance(parsed, Manifest)
        assert all(0 <= layer.size < manifest.SIZE_LIMIT and ".." not in layer.digest for layer in parsed.layers)
    with contextlib.suppress(BulkheadError):
        config = manifest.parse_config(data, parsed, HOST, "x")
        assert len(manifest.chain_ids(config.diff_ids)) == len(parsed.layers)


def test_the_documents_are_sound() -> None:
    """What is spoiled below is read when it is not."""
    assert manifest.choose(INDEX, HOST, "x").size == 7
    parsed = manifest.parse(MANIFEST, "x")
    assert manifest.parse_config(json.dumps(CONFIG).encode(), parsed, HOST, "x").user == "1000:1000"


@given(tree=st.one_of(spoiled(INDEX), spoiled(MANIFEST), spoiled(CONFIG)))
@settings(max_examples=400, deadline=None)
def test_spoiled_documents(tree: dict[str, Any]) -> None:
    """Fields that are missing, of another type or out of all bounds are refused, never a crash."""
    with contextlib.suppress(BulkheadError):
        everything(json.dumps(tree).encode())


@given(data=st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=200, deadline=None)
def test_anything_at_all(data: bytes) -> None:
    """Bytes that are no document are refused."""
    with contextlib.suppress(BulkheadError):
        everything(data)
