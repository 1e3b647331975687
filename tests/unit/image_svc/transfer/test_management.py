"""Names come and go, and what is said of images is so."""

import base64
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from bulkhead.proto import images_pb2 as pb
from bulkhead.proto import images_pb2 as run
from image_svc.rpc.inventory import Entry, Inventory
from image_svc.rpc.transfers import message
from support import archives
from support.fake_registry import FakeRegistry, Handler, fake_registry
from support.image_station import Station, station
from support.images import MEDIA, Image, Layer, digest


@pytest.fixture
def image() -> Image:
    """Return an image of two layers."""
    return Image([Layer().file("a", "lower").tar(), Layer().file("b", "upper").tar()], {"Labels": {"tier": "web"}})


@pytest.fixture
def here(node: Station, image: Image) -> str:
    """Have the image here as app:1 and return its id."""
    return str(node.send(archives.tar(archives.oci(image))).images[0].id)


def code(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return how a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def delete(node: Station, image: str, *, force: bool = False) -> pb.DeleteResponse:
    """Delete a name or an image."""
    answer: pb.DeleteResponse = node.stub.Delete(pb.DeleteRequest(image=image, force=force), timeout=30)
    return answer


def test_find(node: Station, here: str, image: Image) -> None:
    """An image is found by name, id, prefix, and the digest of its manifest."""
    manifest = digest(image.manifest())
    for text in ("app:1", "docker.io/library/app:1", here, here[7:], here[7:15], f"app@{manifest}", manifest):
        assert node.stub.Inspect(pb.InspectRequest(image=text), timeout=30).image.id == here
    for text in ("x.io/app:2", "0123", digest(b"no")):
        assert code(lambda text=text: node.stub.Inspect(pb.InspectRequest(image=text), timeout=30)) == (  # type: ignore[misc]
            grpc.StatusCode.NOT_FOUND,
            f"image {text!r} is not here",
        )
    assert code(lambda: node.stub.Inspect(pb.InspectRequest(), timeout=30))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_a_list_reads_the_names_once(node: Station, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of many names takes no look at all of them for each."""
    node.stub.Tag(pb.TagRequest(image="app:1", names=[f"app:{number}" for number in range(2, 20)]), timeout=30)
    looks, targets = 0, node.parts.store.targets

    def counted() -> dict[str, str]:
        nonlocal looks
        looks += 1
        return targets()

    monkeypatch.setattr(node.parts.store, "targets", counted)
    (found,) = node.stub.List(pb.ListRequest(), timeout=30).images
    assert len(found.repo_tags) == 19
    assert looks <= 2


def test_tag(node: Station, here: str) -> None:
    """A further name is listed by the CRI; one that another image has moves, unless that is not wanted."""
    answer = node.stub.Tag(pb.TagRequest(image=here[7:20], names=["x.io/a:2", "b"]), timeout=30)
    assert list(answer.names) == ["x.io/a:2", "docker.io/library/b:latest"]
    assert "x.io/a:2" in node.listed()

    other = Image([Layer().file("c", "other").tar()])
    node.send(archives.tar(archives.oci(other, "x.io/other:1")))
    request = pb.TagRequest(image="x.io/other:1", names=["x.io/a:2"], keep_existing=True)
    assert code(lambda: node.stub.Tag(request, timeout=30))[0] is grpc.StatusCode.ALREADY_EXISTS
    request.keep_existing = False
    node.stub.Tag(request, timeout=30)
    assert node.stub.Inspect(pb.InspectRequest(image="x.io/a:2"), timeout=30).image.id != here
    bad = pb.TagRequest(image="app:1", names=[f"x.io/a@{here}"])
    assert code(lambda: node.stub.Tag(bad, timeout=30))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("unpacked", [True, False])
def test_a_tag_that_moves_leaves_its_image(node: Station, image: Image, unpacked: bool) -> None:
    """Who tags another image with a name is not left without the one that had it, though it had no other name."""
    options = pb.ImportOptions(no_unpack=not unpacked)
    for name, each in (("x.io/old:1", image), ("x.io/new:1", Image([Layer().file("c", "new").tar()]))):
        node.send(archives.tar(archives.oci(each, name)), options)
    node.stub.Tag(pb.TagRequest(image="x.io/old:1", names=["x.io/app:1"]), timeout=30)
    delete(node, "x.io/old:1")
    node.stub.Tag(pb.TagRequest(image="x.io/new:1", names=["x.io/app:1"]), timeout=30)

    by_digest = f"x.io/app@{digest(image.manifest())}"
    found = node.stub.Inspect(pb.InspectRequest(image=by_digest), timeout=30).image
    assert (found.id, found.unpacked) == (digest(image.blobs()[0]), unpacked)
    node.blobs()
    assert node.export(by_digest)
    delete(node, by_digest)
    assert digest(image.manifest()) not in node.blobs()


@pytest.mark.parametrize("unpacked", [True, False])
def test_a_tag_for_what_goes_meanwhile(
    node: Station, image: Image, unpacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is removed after it was found gets no name that would stand for nothing."""
    node.send(archives.tar(archives.oci(image)), pb.ImportOptions(no_unpack=not unpacked))
    find = Inventory.find

    def found(self: Inventory, text: str) -> Entry:
        entry = find(self, text)
        self._parts.store.remove_names(entry.names)
        return entry

    monkeypatch.setattr(Inventory, "find", found)
    status, text = code(lambda: node.stub.Tag(pb.TagRequest(image="app:1", names=["x.io/a:1"]), timeout=30))
    assert (status, text) == (grpc.StatusCode.NOT_FOUND, "image 'app:1' was removed meanwhile")
    assert node.parts.store.targets() == {}


def test_a_name_before_the_beginning_of_an_id(node: Station, here: str) -> None:
    """Content that is named like the beginning of an image's id is meant by that name; a prefix of both is refused."""
    other = Image([Layer().file("c", "other").tar()])
    name = f"docker.io/library/{here[7:19]}:latest"
    node.send(archives.tar(archives.oci(other, name)), pb.ImportOptions(no_unpack=True))
    assert list(delete(node, here[7:19]).untagged) == [name]
    assert "docker.io/library/app:1" in node.listed()


def test_a_prefix_of_an_image_and_of_content(node: Station, here: str) -> None:
    """The beginning of two ids is refused, also where one of them is of content."""
    twin = next(made for n in range(100_000) if digest((made := alike(n)).blobs()[0])[7:10] == here[7:10])
    node.send(archives.tar(archives.oci(twin, "x.io/twin:1")), pb.ImportOptions(no_unpack=True))
    status, text = code(lambda: delete(node, here[7:10], force=True))
    assert (status, text) == (grpc.StatusCode.INVALID_ARGUMENT, f"{here[7:10]!r} is the beginning of 2 ids or digests")
    assert {"docker.io/library/app:1"} <= set(node.listed())


def alike(number: int) -> Image:
    """Return one of many images without layers, each with an id of its own."""
    return Image([], {"Labels": {"number": str(number)}})


def test_errors_call_an_image_as_it_was_called(node: Station, here: str) -> None:
    """Of an image with several names a message has the one that was given."""
    node.stub.Tag(pb.TagRequest(image="app:1", names=["x.io/z:1"]), timeout=30)
    request = pb.InspectRequest(image="x.io/z:1", platform="linux/s390x")
    assert code(lambda: node.stub.Inspect(request, timeout=30))[1].startswith("x.io/z:1: no image for platform")


def test_delete_by_name(node: Station, here: str) -> None:
    """A name goes alone while the image has another tag; with the last one the image goes."""
    node.stub.Tag(pb.TagRequest(image=here, names=["x.io/a:2"]), timeout=30)
    assert list(delete(node, "x.io/a:2").deleted) == []
    assert "docker.io/library/app:1" in node.listed()
    assert list(delete(node, "app:1").deleted) == [here]
    assert node.listed() == []
    assert node.blobs() == set()
    assert code(lambda: delete(node, "app:1"))[0] is grpc.StatusCode.NOT_FOUND


def test_delete_by_id(node: Station, here: str) -> None:
    """An id that has names in several repositories needs force."""
    node.stub.Tag(pb.TagRequest(image=here, names=["x.io/a:2"]), timeout=30)
    status, text = code(lambda: delete(node, here))
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert "x.io/a:2" in text
    assert len(delete(node, here, force=True).untagged) == 3
    assert node.listed() == []


def prepare(node: Station, image: str, key: str) -> None:
    """Make a container's snapshot."""
    node.run.Prepare(run.PrepareRequest(key=key, image_id=image), timeout=30)


def test_an_image_in_use_stays(node: Station, here: str) -> None:
    """What a container uses is neither deleted nor pruned; forced, its layers stay."""
    prepare(node, here, "container-1")
    status, text = code(lambda: delete(node, "app:1"))
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert "container-1" in text
    assert node.stub.Prune(pb.PruneRequest(all=True), timeout=30).images == []
    (shown,) = node.stub.List(pb.ListRequest(filters=["used=true"]), timeout=30).images
    assert list(shown.used_by) == ["container-1"]

    delete(node, "app:1", force=True)
    node.blobs()
    assert len(node.parts.store.layer_sizes()) == 2


def test_a_pinned_image_stays(tmp_path: Path, image: Image) -> None:
    """What the configuration pins is neither deleted nor pruned without force."""
    with station(tmp_path, pinned_images={"sandbox": "app:1"}) as node:
        node.send(archives.tar(archives.oci(image)))
        assert "pinned" in code(lambda: delete(node, "app:1"))[1]
        assert node.stub.Prune(pb.PruneRequest(all=True), timeout=30).images == []
        assert delete(node, "app:1", force=True).deleted


def test_prune(node: Station, here: str) -> None:
    """Without a tag goes by default, everything unused with all; a dry run changes nothing and says the same."""
    other = Image([Layer().file("c", "other").tar()])
    node.send(archives.tar(archives.oci(other)))  # takes app:1 over
    dry = node.stub.Prune(pb.PruneRequest(dry_run=True), timeout=30)
    assert [each.image.id for each in dry.images] == [here]
    assert len(node.listed()) == 3

    before = node.stub.Usage(pb.UsageRequest(), timeout=30)
    real = node.stub.Prune(pb.PruneRequest(), timeout=30)
    assert real == dry
    node.blobs()
    after = node.stub.Usage(pb.UsageRequest(), timeout=30)
    assert before.blobs.bytes + before.layers.bytes - after.blobs.bytes - after.layers.bytes == real.freed
    assert node.stub.Prune(pb.PruneRequest(all=True, filters=["label=none"]), timeout=30).images == []
    assert node.stub.Prune(pb.PruneRequest(all=True), timeout=30).freed == after.reclaimable
    assert node.blobs() == set()


def test_usage_shares(node: Station, image: Image) -> None:
    """A layer that two images have is shared; what only one has is its own, and the sums are what is on disk."""
    more = Image([*image.layers, Layer().file("c", "more").tar()])
    node.send(archives.tar(archives.oci(image)))
    node.send(archives.tar(archives.oci(more, "x.io/more:1")))
    usage = node.stub.Usage(pb.UsageRequest(), timeout=30)
    small, large = sorted(usage.images, key=lambda each: each.unique)
    assert small.shared == large.shared > 0
    assert small.shared + small.unique + large.unique == usage.blobs.bytes + usage.layers.bytes
    assert usage.blobs.bytes == sum(
        len(blob) for blob in (archives.image_blobs(image) | archives.image_blobs(more)).values()
    )
    assert usage.filesystem_size > usage.filesystem_free > 0


def test_names_that_were_asked_for(node: Station, here: str) -> None:
    """With reference filters an image is listed under those of its names that all of them allow."""
    node.stub.Tag(pb.TagRequest(image=here, names=["x.io/zoo:7", "x.io/box:2"]), timeout=30)

    def names(*filters: str) -> list[str]:
        found = node.stub.List(pb.ListRequest(filters=filters), timeout=30).images
        return sorted(name for image in found for name in image.repo_tags)

    assert names("reference=x.io/*") == ["x.io/box:2", "x.io/zoo:7"]
    assert names("reference=x.io/*", "reference=*:7") == ["x.io/zoo:7"]
    assert names("reference=x.io/*", "reference=app") == []
    assert len(names()) == 3


def test_an_id_that_two_forms_have(node: Station, here: str, image: Image) -> None:
    """An image that is here in another form as well is not said to be deleted before both have gone."""
    other = Image(image.layers, image.config, compression="zstd")
    options = pb.ImportOptions(no_unpack=True)
    (kept,) = node.send(archives.tar(archives.oci(other, "x.io/kept:1")), options).images
    assert kept.id == here
    assert list(delete(node, "x.io/kept:1").deleted) == []
    assert list(delete(node, "app:1").deleted) == [here]


def test_what_a_name_was_taken_for(node: Station, here: str) -> None:
    """A name that is not here is told in its complete form as well, which says what it was taken for."""
    for asked, told in (("zoo", ": nothing is called docker.io/library/zoo:latest"), ("x.io/a:1", "")):
        with pytest.raises(grpc.RpcError) as caught:
            node.stub.Inspect(pb.InspectRequest(image=asked), timeout=30)
        assert caught.value.details() == f"image {asked!r} is not here{told}"


def test_filters(node: Station, here: str) -> None:
    """The conditions choose as documented, and what is none of them is refused."""
    for yes in (
        "reference=app*",
        "reference=docker.io/library/app",
        "label=tier",
        "label=tier=web",
        "dangling=false",
        "used=false",
        "pinned=false",
        "since=1h",
        "platform=linux/amd64",
        "label=!tier=db",
        "unpacked=true",
    ):
        assert [each.id for each in node.stub.List(pb.ListRequest(filters=[yes]), timeout=30).images] == [here], yes
    for no in (
        "reference=!app*",
        "reference=ap",
        "label=tier=db",
        "dangling=true",
        "until=1h",
        "until=2020-01-01",
        "platform=linux/arm64",
        "encrypted=true",
    ):
        assert node.stub.List(pb.ListRequest(filters=[no]), timeout=30).images == [], no
    for bad in ("x", "x=1", "dangling=maybe", "until=soon", "label="):
        status, text = code(lambda bad=bad: node.stub.List(pb.ListRequest(filters=[bad]), timeout=30))  # type: ignore[misc]
        assert status is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected" in text


def encrypted(image: Image) -> dict[str, bytes]:
    """Return a layout whose second layer is encrypted for a JWE key and two OpenPGP keys."""
    config, layers = image.blobs()
    manifest = json.loads(image.manifest())
    session_key = bytes([0x84, 12, 3]) + bytes(range(8)) + b"\x01xx"  # old format, tag 1, of 12 bytes
    manifest["layers"][1]["mediaType"] += "+encrypted"
    manifest["layers"][1]["annotations"] = {
        "org.opencontainers.image.enc.keys.jwe": base64.b64encode(b"{}").decode(),
        "org.opencontainers.image.enc.keys.pgp": base64.b64encode(session_key + session_key).decode(),
        "org.opencontainers.image.enc.pubopts": "e30=",
    }
    body = json.dumps(manifest).encode()
    blobs = {archives.blob_name(digest(blob)): blob for blob in (config, *layers, body)}
    described = archives.entry(body, MEDIA["oci"]["manifest"], **{archives.FULL_NAME: "x.io/enc:1"})
    return archives.layout([described], blobs)


def test_an_encrypted_image_without_its_key(tmp_path: Path, image: Image) -> None:
    """It is kept with a warning, the CRI does not see it, and its layers say for whom they are encrypted."""
    with station(tmp_path, key_model="") as node:
        result = node.send(archives.tar(encrypted(image)))
        (warning,) = result.warnings
        assert "kept, but not unpacked" in warning
        assert (result.images[0].encrypted, result.images[0].unpacked) == (True, False)
        assert node.listed() == []
        plain, locked = node.stub.LayerInfo(pb.LayerInfoRequest(image="x.io/enc:1"), timeout=30).layers
        assert (list(plain.encryption), list(plain.recipients)) == ([], [])
        assert list(locked.encryption) == ["jwe", "pgp"]
        assert list(locked.recipients) == ["[jwe]", "0x0001020304050607", "0x0001020304050607"]
        node.stub.Tag(pb.TagRequest(image="x.io/enc:1", names=["x.io/enc:2"]), timeout=30)
        delete(node, "x.io/enc:1")
        assert node.export("x.io/enc:2")
        assert node.stub.Prune(pb.PruneRequest(all=True), timeout=30).images[0].image.repo_tags == ["x.io/enc:2"]
        assert node.blobs() == set()


@pytest.fixture
def multi(registry: FakeRegistry, image: Image) -> str:
    """Hold an image of two platforms in the registry and return its name."""
    other = Image([Layer().file("a", "for arm").tar()], architecture="arm64")
    for each in (image, other):
        registry.push("multi", digest(each.manifest()), each)
    registry.push_manifest("multi", "1", archives.index_of([other, image]), MEDIA["oci"]["index"])
    return f"{registry.address}/multi:1"


def pull(node: Station, image: str, **fields: object) -> list[pb.TransferEvent]:
    """Pull an image and return all events."""
    return list(node.stub.Pull(pb.PullRequest(image=image, **fields), timeout=60))  # type: ignore[arg-type]


def test_pull(node: Station, multi: str) -> None:
    """Events say how far every layer is, the last one is the result."""
    *events, last = pull(node, multi)
    final = events[-1].progress
    assert final.stage == pb.Transfer.DONE
    assert [part.state for part in final.parts] == [pb.Part.DONE] * 2
    assert all(part.done == part.size for part in final.parts)
    assert list(last.result.names) == [multi]
    assert list(last.result.images[0].platforms) == ["linux/amd64"]
    again = pull(node, multi)[-2].progress
    assert [part.state for part in again.parts] == [pb.Part.PRESENT] * 2


def test_pull_of_all_platforms(node: Station, multi: str, registry: FakeRegistry) -> None:
    """Everything is here once, can be exported whole, and only the machine's platform is unpacked."""
    (*_, last) = pull(node, multi, platforms=pb.Platforms(all=True))
    assert list(last.result.images[0].platforms) == ["linux/arm64", "linux/amd64"]
    assert len(node.unpack.trees) == 2
    assert node.export(multi, platforms=pb.Platforms(all=True))
    blobs = [each.path for each in registry.asked("/blobs/")]
    assert len(blobs) == len(set(blobs))
    node.blobs()
    assert node.export(multi, platforms=pb.Platforms(all=True))


def test_attestations_come_along(node: Station, registry: FakeRegistry, image: Image) -> None:
    """What a builder attached to an index is no platform, but part of the whole, and goes where it goes."""
    statement = b'{"_type": "https://in-toto.io/Statement/v0.1"}'
    config = json.dumps(
        {"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": []}}
    ).encode()
    attached = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA["oci"]["manifest"],
            "config": archives.entry(config, MEDIA["oci"]["config"]),
            "layers": [archives.entry(statement, "application/vnd.in-toto+json")],
        }
    ).encode()
    index = json.loads(archives.index_of([image]))
    unknown = {"platform": {"os": "unknown", "architecture": "unknown"}}
    index["manifests"].append({**archives.entry(attached, MEDIA["oci"]["manifest"]), **unknown})
    registry.push("app", digest(image.manifest()), image)
    registry.blobs |= {digest(blob): blob for blob in (config, statement)}
    registry.push_manifest("app", digest(attached), attached, MEDIA["oci"]["manifest"])
    registry.push_manifest("app", "1", index, MEDIA["oci"]["index"])
    name = f"{registry.address}/app:1"

    everything = pb.Platforms(all=True)
    (*_, last) = pull(node, name, platforms=everything)
    assert list(last.result.images[0].platforms) == ["linux/amd64"]
    data = node.export(name, platforms=everything)
    assert archives.untar(data)[archives.blob_name(digest(statement))] == statement
    delete(node, name)
    assert node.blobs() == set()
    node.send(data, pb.ImportOptions(platforms=everything))
    assert node.export(name, platforms=everything) == data


def test_pull_of_another_platform(node: Station, multi: str) -> None:
    """It is content only; a later pull of the machine's own keeps both."""
    (*_, last) = pull(node, multi, platforms=pb.Platforms(names=["linux/arm64"]))
    assert not last.result.images[0].unpacked
    assert (node.listed(), node.unpack.trees) == ([], {})
    pull(node, multi)
    assert multi in node.listed()
    assert node.export(multi, platforms=pb.Platforms(all=True))
    assert "s390x" in code(lambda: pull(node, multi, platforms=pb.Platforms(names=["linux/s390x"])))[1]


def test_watch(node: Station, multi: str, registry: FakeRegistry) -> None:
    """A pull that anybody began is seen while it goes on, once more at its end, and is gone after that."""
    gate = threading.Event()

    def slowly(handler: Handler) -> bool:
        gate.wait(60)
        return False

    registry.on("/blobs/", slowly)
    puller = threading.Thread(target=pull, args=(node, multi))
    puller.start()
    answers = node.stub.WatchPulls(pb.WatchPullsRequest(interval_ms=100), timeout=60)
    stages = []
    for answer in answers:
        stages += [each.stage for each in answer.pulls]
        if answer.pulls:
            assert answer.pulls[0].image == multi
            gate.set()
        elif stages:
            break
    puller.join(60)
    assert stages[-1] == pb.Transfer.DONE
    bad = pb.WatchPullsRequest(interval_ms=5)
    assert code(lambda: next(node.stub.WatchPulls(bad, timeout=30)))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_a_pull_ends_when_its_caller_leaves(node: Station, multi: str, registry: FakeRegistry) -> None:
    """Nobody else wants it: it is called off, and metrics and watchers have nothing to show."""
    asked, gate = threading.Event(), threading.Event()

    def hold(handler: Handler) -> bool:
        asked.set()
        gate.wait(60)
        return False

    registry.on("/blobs/", hold)
    call = node.stub.Pull(pb.PullRequest(image=multi), timeout=60)
    assert asked.wait(60)
    call.cancel()
    gate.set()
    until = time.monotonic() + 60
    while node.parts.puller.pulls.current() and time.monotonic() < until:
        time.sleep(0.02)
    assert node.parts.puller.pulls.current() == []
    assert node.listed() == []


def test_a_failed_pull_says_why(node: Station, registry: FakeRegistry) -> None:
    """The status is the failure's own, and so is the last event."""
    status, text = code(lambda: pull(node, f"{registry.address}/nope:1"))
    assert status is grpc.StatusCode.NOT_FOUND
    assert "nope" in text
    assert code(lambda: pull(node, "Bad Name"))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_transfer_messages() -> None:
    """A progress without layers is a transfer without parts."""
    from image_svc.pulling.progress import Progress

    made = message(Progress("x.io/a:1"))
    assert (made.image, made.stage, list(made.parts)) == ("x.io/a:1", pb.Transfer.RESOLVING, [])


def test_a_pull_by_hand_and_the_kubelets_share(node: Station, multi: str, registry: FakeRegistry) -> None:
    """Both want the same image at the same time: each blob of it is fetched once, and both have it."""
    from bulkhead.proto.runtime.v1 import api_pb2 as cri

    request = cri.PullImageRequest(image=cri.ImageSpec(image=multi))
    asked, gate = threading.Event(), threading.Event()

    def hold(handler: Handler) -> bool:
        asked.set()
        gate.wait(60)
        return False

    registry.on("/blobs/", hold)
    theirs = node.cri.PullImage.future(request, timeout=20)
    assert asked.wait(60)
    ours = node.stub.Pull(pb.PullRequest(image=multi), timeout=60)
    next(ours)
    gate.set()
    *_, last = ours
    assert last.result.images[0].id == theirs.result(timeout=60).image_ref
    layers = [
        each.path for each in registry.asked("/blobs/") if each.path.rpartition("/")[2] != last.result.images[0].id
    ]
    assert len(layers) == len(set(layers))


def test_a_pull_by_hand_beside_one_that_fails(node: Station, registry: FakeRegistry, image: Image) -> None:
    """Whoever joined a download that another registry then refuses fetches the blob from its own."""
    registry.push("app", "1", image)
    blob = digest(image.blobs()[1][0])
    asked, refuse = threading.Event(), threading.Event()

    def refused(handler: Handler) -> bool:
        asked.set()
        refuse.wait(60)
        handler.send_response(403)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    with fake_registry() as other:
        other.push("app", "1", image)
        other.on(blob, refused)
        first = node.stub.Pull(pb.PullRequest(image=f"{other.address}/app:1", no_unpack=True), timeout=60)
        assert asked.wait(60)
        second = node.stub.Pull(pb.PullRequest(image=f"{registry.address}/app:1", no_unpack=True), timeout=60)
        until = time.monotonic() + 60
        while (blob, pb.Part.MOVING) not in {(part.digest, part.state) for part in next(second).progress.parts}:
            assert time.monotonic() < until
        refuse.set()

        *_, last = second
        assert last.result.digest == digest(image.manifest())
        with pytest.raises(grpc.RpcError):
            list(first)


def test_an_encrypted_pull_without_its_key(tmp_path: Path, registry: FakeRegistry, image: Image) -> None:
    """By hand the image is kept, to be pushed on or run by who brings a key; the kubelet's pull of it fails."""
    from bulkhead.proto.runtime.v1 import api_pb2 as cri

    for name, blob in encrypted(image).items():
        if name.startswith("blobs/"):
            registry.blobs[digest(blob)] = blob
    body = next(blob for blob in registry.blobs.values() if b"+encrypted" in blob)
    registry.push_manifest("enc", "1", body, MEDIA["oci"]["manifest"])
    name = f"{registry.address}/enc:1"
    with station(tmp_path, key_model="") as node:
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        assert code(lambda: node.cri.PullImage(request, timeout=10))[0] is grpc.StatusCode.FAILED_PRECONDITION
        (*_, last) = pull(node, name)
        assert "kept, but not unpacked" in last.result.warnings[0]
        assert (node.listed(), node.unpack.trees) == ([], {})
        node.blobs()
        assert node.export(name)


def test_discarded_layers(tmp_path: Path, image: Image) -> None:
    """With discard_unpacked_layers an image cannot leave, unless somebody asked for its content to be kept."""
    with station(tmp_path, discard_unpacked_layers=True) as node:
        data = archives.tar(archives.oci(image))
        node.send(data)
        assert digest(image.blobs()[1][0]) not in node.blobs()
        status, text = code(lambda: node.export("app:1"))
        assert status is grpc.StatusCode.FAILED_PRECONDITION
        assert all(digest(layer) in text for layer in image.blobs()[1])

        node.send(data, pb.ImportOptions(no_unpack=True))
        assert digest(image.blobs()[1][0]) in node.blobs()
        assert node.export("app:1")
        assert "docker.io/library/app:1" in node.listed()


def test_inspect_reads_no_giant(node: Station) -> None:
    """What an artifact calls its configuration may be of any size, and is not read into memory to be shown."""
    giant, kinds = bytes(9 << 20), MEDIA["oci"]
    manifest = json.dumps({"config": archives.entry(giant, "application/vnd.example"), "layers": []}).encode()
    described = archives.entry(manifest, kinds["manifest"], **{archives.FULL_NAME: "x.io/model:1"})
    blobs = {archives.blob_name(digest(data)): data for data in (giant, manifest)}
    options = pb.ImportOptions(no_unpack=True, platforms=pb.Platforms(all=True))
    node.send(archives.tar(archives.layout([described], blobs)), options, piece=1 << 20)

    status, text = code(lambda: node.stub.Inspect(pb.InspectRequest(image="x.io/model:1"), timeout=30))
    assert (status, "at most 8388608" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
