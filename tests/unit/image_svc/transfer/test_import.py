"""Archives come in as they should, and those that are not sound leave nothing."""

import bz2
import errno
import gzip
import json
import lzma
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard

from bulkhead.errors import Cancelled, ResourceExhausted
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from image_svc.patience import Patience
from image_svc.store import Store
from image_svc.transfer.archive import read
from image_svc.transfer.incoming import Importer
from image_svc.transfer.staging import Staging
from support import archives
from support.archives import FULL_NAME, REF_NAME
from support.fake_registry import fake_registry
from support.image_station import Station, station
from support.images import MEDIA, Image, Layer, digest


@pytest.fixture
def image() -> Image:
    """Return an image of two layers."""
    return Image([Layer().file("a", "lower").tar(), Layer().file("b", "upper").tar()], {"Labels": {"made": "here"}})


def refused(node: Station, data: bytes, options: pb.ImportOptions | None = None) -> tuple[grpc.StatusCode, str]:
    """Import an archive that is not sound, check that nothing of it stays, and return how it failed."""
    with pytest.raises(grpc.RpcError) as caught:
        node.send(data, options)
    assert node.listed() == []
    assert node.stub.List(pb.ListRequest(), timeout=30).images == []
    assert node.blobs() == set()
    assert list(node.parts.content.partials()) == []
    return caught.value.code(), caught.value.details() or ""


def good_and_bad(image: Image, good: str = "x.io/good:1") -> bytes:
    """Return an archive of an image and one after it that cannot be unpacked, x.io/bad:1."""
    bad = Image([b"no tar at all"])
    entries = [
        archives.entry(each.manifest(), MEDIA["oci"]["manifest"], **{FULL_NAME: name})
        for name, each in ((good, image), ("x.io/bad:1", bad))
    ]
    return archives.tar(archives.layout(entries, {**archives.image_blobs(image), **archives.image_blobs(bad)}))


@pytest.mark.parametrize("family", ["oci", "docker"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress, bz2.compress, lzma.compress])
def test_oci_layout(node: Station, image: Image, family: str, pack: Any) -> None:
    """A layout is an image of the CRI under its name and digest, with the manifest as it was."""
    image.family = family
    result = node.send(pack(archives.tar(archives.oci(image))))

    name = digest(image.manifest())
    assert result.digest == name
    assert list(result.names) == ["docker.io/library/app:1"]
    assert node.listed() == ["docker.io/library/app:1", f"docker.io/library/app@{name}"]
    assert result.images[0].labels == {"made": "here"}
    assert len(node.unpack.trees) == 2


def test_a_layout_may_come_in_any_order(node: Station, image: Image) -> None:
    """The index may be the last file, and names may begin with "./"."""
    files = archives.oci(image)
    node.send(archives.tar({f"./{name}": files[name] for name in reversed(files)}))
    assert "docker.io/library/app:1" in node.listed()


@pytest.mark.parametrize("packed", [False, True])
def test_docker_save(node: Station, image: Image, packed: bool) -> None:
    """What docker save wrote is imported under its tags, its layers compressed or not; the id is the image's own."""
    files = archives.saved(image, "box:2", "quay.io/box:3")
    if packed:
        files = {name: gzip.compress(data) if name.endswith(".tar") else data for name, data in files.items()}
    result = node.send(archives.tar(files))

    config, _ = image.blobs()
    assert [each.id for each in result.images] == [digest(config)]
    assert {"docker.io/library/box:2", "quay.io/box:3"} <= set(node.listed())
    again = node.send(archives.tar(files))
    assert again.digest == result.digest


@pytest.mark.parametrize(("pack", "way"), [(bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_layers_come_as_registries_have_them(node: Station, image: Image, pack: Any, way: str) -> None:
    """A layer of docker save that is compressed as only whole archives may be is refused by the way's name."""
    files = {
        name: pack(data) if name.endswith("layer.tar") else data for name, data in archives.saved(image, "b").items()
    }
    code, text = refused(node, archives.tar(files))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert f"compressed with {way}" in text


def test_docker_save_links_layers(node: Station) -> None:
    """docker save before version 25 wrote a layer that two images share once, and links to it."""
    import io
    import tarfile

    same = Layer().file("a", "twice").tar()
    files = archives.saved(Image([same]), "box:1")
    out = io.BytesIO()
    (layer,) = [name for name in files if name.endswith("layer.tar")]
    manifest = json.loads(files["manifest.json"])
    manifest[0]["Layers"] = ["other/layer.tar"]
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("other/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, f"../{layer}"
        made.addfile(link)
    node.send(out.getvalue())
    assert "docker.io/library/box:1" in node.listed()


def test_names_of_ones_own(node: Station, image: Image) -> None:
    """Names given replace those of the archive; a bare tag needs to know what it is a tag of."""
    plain = archives.tar(archives.oci(image, ""))
    assert "has no name" in refused(node, plain)[1]
    result = node.send(plain, pb.ImportOptions(names=["x.io/a:1", "x.io/b"]))
    assert list(result.names) == ["x.io/a:1", "x.io/b:latest"]

    described = archives.entry(image.manifest(), MEDIA["oci"]["manifest"], **{REF_NAME: "7"})
    bare = archives.tar(archives.layout([described], archives.image_blobs(image)))
    with pytest.raises(grpc.RpcError, match="base_name"):
        node.send(bare)
    assert list(node.send(bare, pb.ImportOptions(base_name="x.io/c")).names) == ["x.io/c:7"]
    with pytest.raises(grpc.RpcError, match="has a digest"):
        node.send(plain, pb.ImportOptions(names=[f"x.io/a@{digest(b'')}"]))


def platforms(node: Station, image: Image) -> tuple[bytes, Image]:
    """Return an archive of an index of two platforms, and the image of the other one."""
    other = Image([Layer().file("a", "for arm").tar()], architecture="arm64")
    index = archives.index_of([other, image])
    described = archives.entry(index, MEDIA["oci"]["index"], **{FULL_NAME: "x.io/multi:1"})
    blobs = {archives.blob_name(digest(index)): index, **archives.image_blobs(image), **archives.image_blobs(other)}
    return archives.tar(archives.layout([described], blobs)), other


def test_platforms(node: Station, image: Image) -> None:
    """Of an index the machine's platform is taken, or all of them; the others are content that the CRI does not see."""
    data, other = platforms(node, image)
    node.send(data)
    other_config, other_layers = other.blobs()
    assert digest(other_config) not in node.blobs()

    result = node.send(data, pb.ImportOptions(platforms=pb.Platforms(all=True)))
    assert list(result.images[0].platforms) == ["linux/arm64", "linux/amd64"]
    assert {digest(other_config), digest(other_layers[0])} <= node.blobs()
    assert len(node.cri.ListImages(pb_list(), timeout=5).images) == 1

    node.stub.Delete(pb.DeleteRequest(image="x.io/multi:1"), timeout=30)
    assert node.blobs() == set()


def pb_list() -> Any:
    """Return the CRI's request for all images."""
    from bulkhead.proto.runtime.v1 import api_pb2

    return api_pb2.ListImagesRequest()


def test_another_platform_alone(node: Station, image: Image) -> None:
    """An image for another machine is refused with the platforms there are, or kept without being unpacked."""
    data, other = platforms(node, image)
    single = archives.tar(archives.oci(other))
    code, text = refused(node, single)
    assert code is grpc.StatusCode.NOT_FOUND
    assert "linux/arm64" in text

    result = node.send(data, pb.ImportOptions(platforms=pb.Platforms(names=["linux/arm64"])))
    assert not result.images[0].unpacked
    assert node.listed() == []
    assert node.export("x.io/multi:1", platforms=pb.Platforms(names=["arm64"]))
    with pytest.raises(grpc.RpcError, match="no image for platform linux/s390x"):
        node.send(data, pb.ImportOptions(platforms=pb.Platforms(names=["linux/s390x"])))


def test_no_unpack(node: Station, image: Image) -> None:
    """Content only: nothing is unpacked, nothing listed; a later import without it makes an image of it."""
    data = archives.tar(archives.oci(image))
    node.send(data, pb.ImportOptions(no_unpack=True))
    assert (node.listed(), node.unpack.trees) == ([], {})
    assert node.stub.Inspect(pb.InspectRequest(image="app:1"), timeout=30).config_json == image.blobs()[0]
    node.send(data)
    assert "docker.io/library/app:1" in node.listed()


def test_a_wrong_digest(node: Station, image: Image) -> None:
    """A blob that is not what its name promises fails the import."""
    files = archives.oci(image)
    name = archives.blob_name(digest(image.blobs()[1][0]))
    code, text = refused(node, archives.tar({**files, name: b"x" * len(files[name])}))
    assert code is grpc.StatusCode.DATA_LOSS
    assert name in text


def test_a_wrong_diff_id(node: Station, image: Image) -> None:
    """A layer of docker save that is not the one its configuration lists fails the import, compressed or not."""
    files = archives.saved(image, "box:1")
    layer = next(name for name in files if name.endswith("layer.tar"))
    for bad in (Layer().file("evil", "x").tar(), gzip.compress(Layer().file("evil", "x").tar())):
        code, text = refused(node, archives.tar({**files, layer: bad}))
        assert code is grpc.StatusCode.DATA_LOSS
        assert "diff" in text or "tar has digest" in text


def test_a_configuration_of_another_name(node: Station, image: Image) -> None:
    """The configuration's file is named after its digest, and must have it."""
    files = archives.saved(image, "box:1")
    name = next(each for each in files if each.endswith(".json") and each != "manifest.json")
    other = json.loads(files[name])
    other["config"]["Cmd"] = ["evil"]
    code, _ = refused(node, archives.tar({**files, name: json.dumps(other).encode()}))
    assert code is grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_missing_blob(node: Station, image: Image, which: int) -> None:
    """Configuration, layer or manifest: what is missing is named."""
    files = archives.oci(image)
    config, layers = image.blobs()
    missing = (config, layers[1], image.manifest())[which]
    del files[archives.blob_name(digest(missing))]
    code, text = refused(node, archives.tar(files))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert digest(missing) in text


@pytest.mark.parametrize("key", [FULL_NAME, REF_NAME])
@pytest.mark.parametrize("options", [pb.ImportOptions(), pb.ImportOptions(no_unpack=True)], ids=["unpacked", "kept"])
def test_a_name_with_the_digest_of_something_else(
    node: Station, image: Image, key: str, options: pb.ImportOptions
) -> None:
    """Nothing gets a name that pods use to be sure what they run, beside another name or alone, but what has it."""
    own, other = digest(image.manifest()), digest(b"what pods are pinned to")
    for names in (["x.io/app:1", f"x.io/app@{other}"], [f"x.io/app@{other}"]):
        entries = [archives.entry(image.manifest(), MEDIA["oci"]["manifest"], **{key: name}) for name in names]
        code, text = refused(node, archives.tar(archives.layout(entries, archives.image_blobs(image))), options)
        assert code is grpc.StatusCode.DATA_LOSS
        assert f"it is called 'x.io/app@{other}', and has digest {own}" in text
    entries = [archives.entry(image.manifest(), MEDIA["oci"]["manifest"], **{key: f"x.io/app@{own}"})]
    node.send(archives.tar(archives.layout(entries, archives.image_blobs(image))), options)
    assert node.stub.Inspect(pb.InspectRequest(image=f"x.io/app@{own}"), timeout=5).image.target_digest == own


def test_not_an_archive(node: Station, image: Image) -> None:
    """What is no tar, no image, cut or empty says so."""
    whole = archives.tar(archives.oci(image))
    assert "not a tar" in refused(node, b"hello" * 500)[1]
    assert "neither an OCI layout" in refused(node, archives.tar({"readme": b"x"}))[1]
    assert "before 1.10" in refused(node, archives.tar({"repositories": b"{}"}))[1]
    assert "empty" in refused(node, b"")[1]
    assert refused(node, whole[: 3 * 512 + 100])[0] is grpc.StatusCode.DATA_LOSS
    assert refused(node, gzip.compress(whole)[:-300])[0] is grpc.StatusCode.DATA_LOSS
    assert "holds no images" in refused(node, archives.tar(archives.layout([], {})))[1]


def test_an_archive_has_a_limit(tmp_path: Path, image: Image) -> None:
    """What an archive holds is counted uncompressed, padding behind its end included; too much leaves nothing."""
    whole = archives.tar(archives.oci(image))
    with station(tmp_path, {"import_max_bytes": len(whole)}) as node:
        for data in (whole + bytes(1), gzip.compress(whole + bytes(1 << 20)), lzma.compress(whole + bytes(1 << 20))):
            code, text = refused(node, data)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"more than {len(whole)} bytes" in text
        node.send(gzip.compress(whole))
        assert "docker.io/library/app:1" in node.listed()


def test_a_layer_that_unpacks_without_end(tmp_path: Path, image: Image) -> None:
    """A compressed layer of docker save is looked at no further than layers may be large."""
    files = archives.saved(image, "box:1")
    layer = next(name for name in files if name.endswith("layer.tar"))
    with station(tmp_path, {"unpack_max_bytes": 1 << 20}) as node:
        code, text = refused(node, archives.tar({**files, layer: gzip.compress(bytes(3 << 20))}))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "more than 1048576 bytes" in text


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_disk_that_becomes_full(node: Station, image: Image, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """An import that meets a full disk gives back what it took and says how much is missing and where."""
    real = getattr(os, call)
    calls = iter(range(100))

    def full(fd: int, *rest: Any) -> Any:
        kept = str(node.parts.content.partial("").parent)
        if os.readlink(f"/proc/self/fd/{fd}").startswith(kept) and next(calls) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, *rest)

    monkeypatch.setattr(os, call, full)
    code, text = refused(node, archives.tar(archives.oci(image)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "No space left on device; at least " in text
    assert text.endswith(f"bytes are missing on the file system of {node.parts.config.root}")


def test_options_come_first(node: Station) -> None:
    """A stream that does not begin with options is refused."""
    with pytest.raises(grpc.RpcError, match="options"):
        list(node.stub.Import(iter([pb.ImportRequest(data=b"x")]), timeout=30))


def test_a_failure_takes_back_the_names_it_gave(node: Station, image: Image) -> None:
    """When the second image of an archive cannot be unpacked, the first one's names go as well."""
    assert refused(node, good_and_bad(image))[0] is grpc.StatusCode.DATA_LOSS


def test_names_that_could_not_be_taken_back(tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go at the next import, or the next start that can; those that are given after that stay."""
    take_back = Store.take_back_names

    def full(self: Store) -> None:
        if "x.io/good:1" in self.targets():
            raise ResourceExhausted("no room to forget")

    def tags(node: Station) -> list[str]:
        return [name for name in node.listed() if "@" not in name]

    monkeypatch.setattr(Store, "take_back_names", full)
    with station(tmp_path) as node:
        with pytest.raises(grpc.RpcError, match="not a tar"):
            node.send(good_and_bad(image))
        assert tags(node) == ["x.io/good:1"]
        helper = node.unpack
    with station(tmp_path, helper=helper) as node:
        assert tags(node) == ["x.io/good:1"]
        monkeypatch.setattr(Store, "take_back_names", take_back)
        node.send(archives.tar(archives.oci(image, "x.io/other:1")))
        assert tags(node) == ["x.io/other:1"]
        node.send(archives.tar(archives.oci(image, "x.io/good:1")))
    with station(tmp_path, helper=helper) as node:
        assert tags(node) == ["x.io/good:1", "x.io/other:1"]


def test_a_failure_beside_another_import(node: Station, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that another import has given meanwhile stay, though one that fails had given them as well."""
    data = good_and_bad(image)
    real, begun, gate = Importer._land, threading.Event(), threading.Event()

    def land(self: Importer, plan: Any, *rest: Any) -> Any:
        if str(plan.incoming.names[0]) == "x.io/bad:1":
            begun.set()
            gate.wait(60)
        return real(self, plan, *rest)

    monkeypatch.setattr(Importer, "_land", land)
    with ThreadPoolExecutor(2) as pool:
        fails = pool.submit(node.send, data)
        assert begun.wait(60)
        works = pool.submit(node.send, archives.tar(archives.oci(image, "x.io/good:1")))
        wait([works], timeout=0.5)
        gate.set()
        assert works.result(60).names
        with pytest.raises(grpc.RpcError):
            fails.result(60)
    assert [name for name in node.listed() if "@" not in name] == ["x.io/good:1"]


@pytest.mark.parametrize("same", [True, False], ids=["the same image", "another image"])
@pytest.mark.parametrize("before", [True, False], ids=["before the import's", "after the import's"])
def test_a_failure_beside_a_pull(
    node: Station, image: Image, monkeypatch: pytest.MonkeyPatch, same: bool, before: bool
) -> None:
    """What the kubelet pulled while an import that then failed gave the same name is listed as it was told."""
    pulled = image if same else Image([Layer().file("c", "newer").tar()])
    real = Importer._land
    with fake_registry() as registry:
        registry.push("good", "1", pulled)
        name = f"{registry.address}/good:1"

        def land(self: Importer, plan: Any, *rest: Any) -> Any:
            if str(plan.incoming.names[0]) == (name if before else "x.io/bad:1"):
                node.cri.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=name)), timeout=60)
            return real(self, plan, *rest)

        monkeypatch.setattr(Importer, "_land", land)
        with pytest.raises(grpc.RpcError, match="not a tar"):
            node.send(good_and_bad(image, name))
    assert name in node.listed()
    assert "x.io/bad:1" not in node.listed()


def test_a_crash_in_mid_import(tmp_path: Path) -> None:
    """What a killed import had written is gone after the next start; an interrupted download stays."""
    with station(tmp_path) as node:
        ingest = node.parts.content.partial("import-0123")
        ingest.write_bytes(b"half of a layer")
        download = node.parts.content.partial(digest(b"x"))
        download.write_bytes(b"x")
    with station(tmp_path):
        assert (ingest.exists(), download.exists()) == (False, True)


def test_a_crash_between_two_images(tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the first image of an archive had its names: after the next start it has none, those before stay."""
    other = Image([Layer().file("c", "other").tar()])
    entries = [
        archives.entry(each.manifest(), MEDIA["oci"]["manifest"], **{FULL_NAME: name})
        for name, each in (("x.io/first:1", image), ("x.io/old:1", image), ("x.io/second:1", other))
    ]
    data = archives.tar(archives.layout(entries, {**archives.image_blobs(image), **archives.image_blobs(other)}))
    real, crashed = Importer._land, tmp_path / "crashed"

    def land(self: Importer, plan: Any, *rest: Any) -> Any:
        if str(plan.incoming.names[0]) == "x.io/second:1":
            shutil.copytree(tmp_path / "one", crashed, ignore=lambda *_: ["grpc.sock"])
        return real(self, plan, *rest)

    monkeypatch.setattr(Importer, "_land", land)
    (tmp_path / "one").mkdir()
    with station(tmp_path / "one") as node:
        node.send(archives.tar(archives.oci(image, "x.io/old:1")))
        node.send(data)
        assert {"x.io/first:1", "x.io/second:1"} <= set(node.listed())
        assert list(node.parts.content.partials()) == []
        helper = node.unpack
    with station(tmp_path / "one", helper=helper) as node:
        assert {"x.io/first:1", "x.io/second:1"} <= set(node.listed())
    with station(crashed, helper=helper) as node:
        assert [name for name in node.listed() if "@" not in name] == ["x.io/old:1"]
        assert list(node.parts.content.partials()) == []


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_a_caller_that_stands_still(node: Station, image: Image, monkeypatch: pytest.MonkeyPatch, sent: int) -> None:
    """An import that neither goes on nor ends is over when its time is, and leaves nothing."""
    monkeypatch.setattr("image_svc.rpc.management._ARCHIVE_TIMEOUT", 0.5)
    data = archives.tar(archives.oci(image))
    messages = [pb.ImportRequest(options=pb.ImportOptions()), pb.ImportRequest(data=data[:2000])]
    gate = threading.Event()

    def requests() -> Iterator[pb.ImportRequest]:
        yield from messages[:sent]
        gate.wait(20)

    with pytest.raises(grpc.RpcError) as caught:
        list(node.stub.Import(requests(), timeout=15))
    gate.set()
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    until = time.monotonic() + 60
    while node.parts.leases._claims and time.monotonic() < until:
        time.sleep(0.01)
    assert not node.parts.leases._claims
    assert node.blobs() == set()


def test_a_caller_that_leaves(node: Station) -> None:
    """An import whose caller hangs up in the middle ends, and leaves nothing."""
    data = archives.tar(archives.oci(Image([Layer().file(name, random.randbytes(3 << 20)).tar() for name in "ab"])))
    gate = threading.Event()

    def requests() -> Iterator[pb.ImportRequest]:
        yield pb.ImportRequest(options=pb.ImportOptions())
        yield pb.ImportRequest(data=data[: len(data) * 3 // 4])
        gate.wait(60)

    call = node.stub.Import(requests(), timeout=60)
    until = time.monotonic() + 60
    while not node.parts.leases._claims and time.monotonic() < until:
        time.sleep(0.01)
    call.cancel()
    gate.set()
    while node.parts.leases._claims and time.monotonic() < until:
        time.sleep(0.01)
    assert not node.parts.leases._claims
    assert node.blobs() == set()
    assert list(node.parts.content.partials()) == []


def test_an_archive_of_nothing_can_be_called_off(node: Station) -> None:
    """Nobody need wait for streams without content to end: an import ends with its patience, whatever it reads."""
    patience = Patience(60.0, "import")

    def blocks() -> Iterator[bytes]:
        for number in range(10):
            if number == 2:
                patience.cancel()
            yield bz2.compress(b"")
        raise AssertionError("all of it was read")

    with node.parts.leases.lease() as lease:
        staging = Staging(node.parts.content, node.parts.store, lease, patience, 1 << 20)
        with pytest.raises(Cancelled):
            read(blocks(), staging, node.parts.content, patience, 1 << 20)
