"""Whatever an archive's documents say, and however its names are linked, the answer is an error of ours or an image."""

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkhead.errors import BulkheadError, DeadlineExceeded, InvalidArgument, ResourceExhausted
from image_svc.decompress import tar_stream
from image_svc.ingest import Content
from image_svc.leases import Lease, Leases
from image_svc.oci.platforms import Platform
from image_svc.patience import Patience
from image_svc.store import Store
from image_svc.transfer.archive import Archive, read
from image_svc.transfer.contents import Contents
from image_svc.transfer.layout import Layouts
from image_svc.transfer.selection import parse, selection
from image_svc.transfer.staging import Staging
from support import archives
from support.image_station import Station
from support.images import MEDIA, Image, Layer, digest

_TEXT = st.sampled_from(
    [digest(b"x"), "sha256:0", MEDIA["oci"]["index"], MEDIA["docker"]["manifest"], "a.json", "x.io/a:1", "", "\0"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["manifests", "digest", "size", "mediaType", "annotations", "platform", "config", "layers", "Config",
             "Layers", "RepoTags", "os", "architecture", archives.FULL_NAME, archives.REF_NAME, "rootfs", "diff_ids"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Any]:
    """Return a content store and a staging area over it."""
    content, store = Content(tmp_path), Store(tmp_path / "images.db")
    staging = Staging(content, store, Lease(Leases()), Patience(60, "test"), 1 << 30)
    yield SimpleNamespace(content=content, staging=staging)
    store.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(["index.json", "manifest.json"]), _JSON)
def test_any_documents(place: Any, name: str, document: Any) -> None:
    """Arbitrary JSON under the names that count."""
    archive = Archive(place.content, {name: json.dumps(document).encode(), "a.json": json.dumps(document).encode()})
    with suppress(BulkheadError):
        Layouts(archive, place.content, place.staging, Patience(60, "test")).images((), "")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_JSON)
def test_any_target(place: Any, document: Any) -> None:
    """Arbitrary JSON in place of an index or a manifest."""
    name = place.staging.document(json.dumps(document).encode())
    with suppress(BulkheadError):
        Contents(place.content).tree(name).choose(Platform("linux", "amd64"))


def test_links_in_a_circle(place: Any) -> None:
    """A link that leads to itself is told, not followed for ever."""
    archive = Archive(place.content, links={"a": "b", "b": "a"})
    with pytest.raises(InvalidArgument, match="circle"):
        archive.staged("a")


def test_giants(place: Any) -> None:
    """A file that is larger than layers may be, or than the disk, is refused before its first byte is written."""
    import tarfile

    for size in (2 << 30, 1 << 50):
        info = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
        info.size = size
        with pytest.raises(ResourceExhausted, match="at most"):
            read([info.tobuf(tarfile.GNU_FORMAT)], place.staging, place.content, Patience(60, "test"), 1 << 30)
    assert list(place.content.partials()) == []


def test_a_disk_that_is_too_small(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the disk has no room for is refused before its first byte is written."""
    import os

    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=4096))
    with pytest.raises(ResourceExhausted, match="at least 45904 bytes are missing"):
        read([archives.tar({"layer.tar": bytes(50_000)})], place.staging, place.content, Patience(60, "test"), 1 << 30)


def test_bombs(node: Station) -> None:
    """A document of gigabytes, kilobytes when compressed, is refused."""
    import zstandard

    data = archives.tar({"index.json": b" " * (9 << 20)})
    with pytest.raises(grpc.RpcError) as caught:
        node.send(zstandard.compress(data))
    assert "at most" in (caught.value.details() or "")
    assert node.blobs() == set()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("linux/amd64", "linux/amd64"), ("arm64", "linux/arm64"), ("linux/arm", "linux/arm"),
     ("linux/arm/v7", "linux/arm/v7"), ("Linux/x86_64", "linux/amd64"), ("windows", "windows/amd64"),
     ("linux/arm64/v8", "linux/arm64")],
)  # fmt: skip
def test_platforms(text: str, wanted: str) -> None:
    """Platforms are read as people write them."""
    assert str(parse(text, Platform("linux", "amd64"))) == wanted


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/amd 64", "linux/\x00", "é"])
def test_no_platforms(text: str) -> None:
    """What is none is refused with what was expected."""
    with pytest.raises(InvalidArgument, match="expected OS/ARCHITECTURE"):
        parse(text, Platform("linux", "amd64"))


def test_all_or_some() -> None:
    """All platforms and some by name contradict each other."""
    with pytest.raises(InvalidArgument, match="at once"):
        selection(["linux/arm64"], Platform("linux", "amd64"), all_platforms=True)


def test_nested_indexes(place: Any) -> None:
    """An index within an index is followed, one within itself cannot be made, and too many levels are refused."""
    image = Image([Layer().file("a", "x").tar()])
    for blob in archives.image_blobs(image).values():
        place.staging.document(blob)
    inner = archives.index_of([image])
    contents = Contents(place.content)
    for level in range(6):
        name = place.staging.document(inner)
        if level < 4:
            assert [str(each.platform) for each in contents.tree(name).images] == ["linux/amd64"]
        else:
            with pytest.raises(BulkheadError, match="nested"):
                contents.tree(name)
        body = {"mediaType": MEDIA["oci"]["index"], "manifests": [archives.entry(inner, MEDIA["oci"]["index"])]}
        inner = json.dumps(body).encode()


def test_an_index_that_multiplies(place: Any) -> None:
    """Entries that all lead to the same index are followed once; without that, each level would square the work."""
    image = Image([Layer().file("a", "x").tar()])
    for blob in archives.image_blobs(image).values():
        place.staging.document(blob)
    inner = archives.index_of([image])
    for _ in range(3):
        place.staging.document(inner)
        entries = [archives.entry(inner, MEDIA["oci"]["index"])] * 300
        inner = json.dumps({"mediaType": MEDIA["oci"]["index"], "manifests": entries}).encode()
    began = time.monotonic()
    tree = Contents(place.content).tree(place.staging.document(inner))

    assert [str(each.platform) for each in tree.images] == ["linux/amd64"]
    assert time.monotonic() - began < 5


def test_more_than_an_image_can_have(place: Any) -> None:
    """An index of thousands of manifests, and a manifest of thousands of layers, are refused in few words."""
    absent = {"mediaType": MEDIA["oci"]["manifest"], "digest": digest(b"x"), "size": 1}
    wide = json.dumps({"mediaType": MEDIA["oci"]["index"], "manifests": [absent] * 5000}).encode()
    config, layer = ({**absent, "mediaType": MEDIA["oci"][kind]} for kind in ("config", "gzip"))
    deep = json.dumps({"mediaType": MEDIA["oci"]["manifest"], "config": config, "layers": [layer] * 5000}).encode()
    for document, words in ((wide, "more than 1000 manifests"), (deep, "at most 500")):
        with pytest.raises(BulkheadError, match=words):
            Contents(place.content).tree(place.staging.document(document))


def test_what_was_read_does_not_pile_up(place: Any) -> None:
    """However many and large the documents, those kept in memory are a few megabytes."""
    contents = Contents(place.content)
    for number in range(60):
        contents.json(place.staging.document(json.dumps({"n": number, "x": "y" * 200_000}).encode()))
    contents.json(place.staging.document(json.dumps({"x": "y" * 3_000_000}).encode()))

    assert sum(len(json.dumps(each)) for each in contents._parsed.values()) < 5 << 20


@pytest.mark.parametrize("kind", ["padding", "headers"])
def test_a_bomb_ends_with_patience(place: Any, kind: str) -> None:
    """Endless zeros after the end, or headers of nothing, are read as long as somebody waits and no longer."""
    import itertools
    import tarfile

    header = tarfile.TarInfo("global")
    header.type = tarfile.XGLTYPE
    block = bytes(1 << 20) if kind == "padding" else header.tobuf(tarfile.GNU_FORMAT) * 2048
    with pytest.raises(DeadlineExceeded):
        read(itertools.repeat(block, 20_000), place.staging, place.content, Patience(0.3, "test"), 1 << 40)


def test_names_are_bounded(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and targets of links count among what an archive may have in memory."""
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(40):
            info = tarfile.TarInfo(f"{number}/{'n' * 900}")
            info.type, info.linkname = tarfile.SYMTYPE, "t" * 900
            archive.addfile(info)
    monkeypatch.setattr("image_svc.transfer.archive.DOCUMENTS_LIMIT", 50_000)
    with pytest.raises(ResourceExhausted, match="names"):
        read([out.getvalue()], place.staging, place.content, Patience(60, "test"), 1 << 30)


def test_a_layer_is_decompressed_once(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed layer that many images of an archive share is checked against its diff id once."""
    layer = Layer().file("a", "x" * 100_000).tar()
    image = Image([layer])
    files = archives.saved(image, "app:1")
    files = {name: gzip.compress(data) if name.endswith(".tar") else data for name, data in files.items()}
    (saved,) = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps([saved] * 50).encode()
    opened: list[str] = []

    def noted(blocks: Iterator[bytes], where: str) -> Iterator[bytes]:
        opened.append(where)
        return iter(tar_stream(blocks, where))

    monkeypatch.setattr("image_svc.transfer.layout.tar_stream", noted)
    patience = Patience(60, "test")
    archive = read([archives.tar(files)], place.staging, place.content, patience, 1 << 30)
    assert len(Layouts(archive, place.content, place.staging, patience).images((), "")) == 50
    assert len(opened) == 1
