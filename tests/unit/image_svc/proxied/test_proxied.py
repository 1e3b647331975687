"""Proxy snapshotters, with a fake one in this process: what it is asked, and what comes of its failures."""

import json
import socket as sockets
from pathlib import Path
from typing import cast

import grpc
import pytest

from bulkhead.config.model import ProxyPlugin
from bulkhead.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from bulkhead.proto.containerd import snapshots_pb2 as pb
from bulkhead.proto.containerd.types_pb2 import Mount
from image_svc.patience import Patience
from image_svc.proxied import Proxies, Proxy, client
from image_svc.pulling.pull import ANYBODY
from image_svc.snapshotters import Snapshotters
from image_svc.store import Snapshot
from image_svc.unpack.client import UnpackClient
from support.fake_registry import FakeRegistry
from support.fake_snapshots import TARGET, FakeSnapshots, fake_snapshots
from support.images import Image, Layer, digest
from support.proxied_node import Applying, ProxiedNode, chain


def test_layers_are_stacked_from_the_base_up(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """Each layer is prepared on the one beneath, unpacked into its upper directory and committed by its chain id."""
    manifest = registry.push("app", "1", image)
    name = f"{registry.address}/app:1"

    node.pull_there(name)

    ids = chain(image)
    assert fake.names(pb.COMMITTED) == set(ids)
    assert fake.names(pb.ACTIVE) == set()
    assert [fake.found[each].parent for each in ids] == ["", *ids[:2]]
    helper = cast(Applying, node.unpack)
    assert [len(below) for below in helper.below.values()] == [0, 1, 2]
    assert list(helper.trees.values()) == [["one"], ["two"], ["three"]]
    assert [call for call in fake.calls if call[0] == "Commit"] == [("Commit", each) for each in ids]
    blobs = [digest(blob) for blob in image.blobs()[1]]
    assert fake.labels[ids[1]] == {
        "containerd.io/snapshot.ref": ids[1],
        "containerd.io/snapshot/diff-id": digest(image.layers[1]),
        "containerd.io/snapshot/parent-chain-id": ids[0],
        "containerd.io/snapshot/cri.image-ref": name,
        "containerd.io/snapshot/cri.manifest-digest": manifest,
        "containerd.io/snapshot/cri.layer-digest": blobs[1],
        "containerd.io/snapshot/cri.image-layers": f"{blobs[1]},{blobs[2]}",
    }
    assert all(each["containerd-namespace"] == "k8s.io" for each in fake.metadata)
    assert node.store.proxied_usage() == {"fake": (3 * 8192, 6)}
    assert all(node.content.has(blob) for blob in blobs)


def test_annotations_may_be_disabled(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image, socket: Path
) -> None:
    """With disable_snapshot_annotations the snapshotter is not told where the image comes from."""
    node.proxies.close()
    node.options = {"disable_snapshot_annotations": True}
    node.join(socket)
    registry.push("app", "1", image)

    node.pull_there(f"{registry.address}/app:1")

    assert set(fake.labels[chain(image)[0]]) == {TARGET, "containerd.io/snapshot/diff-id"}


def test_what_a_snapshotter_takes_is_not_downloaded(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """A layer of its own is neither fetched nor unpacked; those above it are as usual."""
    registry.push("app", "1", image)
    fake.takes = set(chain(image)[:2])

    node.pull_there(f"{registry.address}/app:1")

    blobs = [digest(blob) for blob in image.blobs()[1]]
    assert [bool(registry.asked(f"/blobs/{blob}")) for blob in blobs] == [False, False, True]
    assert [node.content.has(blob) for blob in blobs] == [False, False, True]
    assert list(node.unpack.trees.values()) == [["three"]]
    assert fake.names(pb.COMMITTED) == set(chain(image))


def test_a_second_pull_makes_nothing(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """What is there stays; what was lost there is made again."""
    registry.push("app", "1", image)
    node.pull_there(f"{registry.address}/app:1")
    fake.calls.clear()

    node.pull_there(f"{registry.address}/app:1")
    assert {method for method, _ in fake.calls} == {"Stat"}

    fake.found.pop(chain(image)[2])
    node.pull_there(f"{registry.address}/app:1")
    assert fake.names(pb.COMMITTED) == set(chain(image))


def test_a_claim_that_does_not_hold(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """A snapshotter that says it has a layer and has not fails the pull after three times, and keeps nothing."""
    registry.push("app", "1", image)
    fake.lies = {chain(image)[0]}

    with pytest.raises(NotFound, match="says that layer"):
        node.pull_there(f"{registry.address}/app:1")
    assert [method for method, _ in fake.calls].count("Prepare") == 3
    assert fake.found == {}


def test_a_layer_that_is_not_what_the_image_says(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """Nothing is committed, and what was prepared is removed."""
    other = Image([Layer().file("other").tar()])
    registry.push("app", "1", image)
    registry.push("app", "other", other)
    lie = json.loads(image.manifest())
    lie["layers"][1] = json.loads(other.manifest())["layers"][0]
    registry.push_manifest("app", "lie", lie, lie["mediaType"])

    with pytest.raises(DataLoss, match="the image says"):
        node.pull_there(f"{registry.address}/app:lie")
    assert fake.names(pb.COMMITTED) == {chain(image)[0]}
    assert fake.names(pb.ACTIVE) == set()
    assert node.catalogue.images() == []


@pytest.mark.parametrize("method", ["Stat", "Prepare", "Commit"])
def test_failures_fail_the_pull(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image, method: str, socket: Path
) -> None:
    """Whatever the snapshotter cannot do fails the pull in its words, with its name and socket, and leaves no key."""
    registry.push("app", "1", image)
    fake.fails = {method: grpc.StatusCode.FAILED_PRECONDITION}

    with pytest.raises(FailedPrecondition, match=f"snapshotter fake at {socket}: {method} fails here"):
        node.pull_there(f"{registry.address}/app:1")
    assert fake.names(pb.ACTIVE) == set()
    assert node.catalogue.images() == []


@pytest.mark.parametrize(
    ("mounts", "named"),
    [
        ([Mount(type="ext4", source="/dev/loop0", options=["ro"])], "'ext4'"),
        ([Mount(type="format/mkdir/overlay", source="overlay")], "'format/mkdir/overlay'"),
        ([Mount(type="bind", source="/x", options=["ro", "rbind"])], "'bind'"),
        ([Mount(type="overlay", options=["lowerdir=/a:/b"])], "'overlay'"),
        ([Mount(type="overlay", options=["upperdir=/a", "userxattr"])], "userxattr"),
        ([], "0 mounts"),
        ([Mount(type="bind"), Mount(type="erofs")], "bind, erofs"),
    ],
)
def test_mounts_that_cannot_be_filled(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image, mounts: list[Mount], named: str
) -> None:
    """A snapshotter whose layers would have to be mounted to be filled is refused by the type."""
    registry.push("app", "1", image)
    fake.mounts = mounts

    with pytest.raises(Unimplemented, match=named):
        node.pull_there(f"{registry.address}/app:1")
    assert fake.names(pb.ACTIVE) == set()


def test_nobody_there(node: ProxiedNode, registry: FakeRegistry, image: Image, socket: Path) -> None:
    """Without its server a snapshotter fails its own pulls, by name, and no other."""
    registry.push("app", "1", image)

    with pytest.raises(Unavailable, match=f"snapshotter fake at {socket} does not answer: No such file"):
        node.pull_there(f"{registry.address}/app:1")
    node.pull(f"{registry.address}/app:1")
    assert len(node.catalogue.images()) == 1


def test_a_server_of_something_else(tmp_path: Path) -> None:
    """A socket that answers with no gRPC, or not at all, ends at the deadline or with its name."""
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        proxy = Proxy("odd", str(tmp_path / "s"), None)
        with pytest.raises((DeadlineExceeded, Unavailable), match="snapshotter odd"):
            proxy.has("x", Patience(0.5, "look"))
        proxy.close()


def test_deadlines(monkeypatch: pytest.MonkeyPatch, fake: FakeSnapshots, socket: Path) -> None:
    """A snapshotter that hangs is waited for no longer than a call may take, or than the caller wants to."""
    monkeypatch.setattr(client, "LOOK", 0.2)
    fake.slow = 1.0
    proxy = Proxy("slow", str(socket), None)

    with pytest.raises(DeadlineExceeded, match=r"snapshotter slow at .* did not answer within 0\.2 s"):
        proxy.has("x")
    with pytest.raises(DeadlineExceeded, match=r"snapshotter slow at .* did not answer within 0\.1 s"):
        proxy.prepare("k", "", {}, Patience(0.1, "pull"))
    patience = Patience(10, "pull")
    patience.cancel()
    with pytest.raises(Cancelled):
        proxy.prepare("k", "", {}, patience)
    proxy.close()


def test_a_server_that_comes_back(socket: Path) -> None:
    """A connection that was lost is made anew, and the call repeated."""
    proxy = Proxy("fake", str(socket), None)
    with fake_snapshots(socket):
        assert not proxy.has("x")
    with pytest.raises(Unavailable):
        proxy.has("x")
    with fake_snapshots(socket) as second:
        second.found["x"] = pb.Info(name="x", kind=pb.COMMITTED)
        assert proxy.has("x")
    proxy.close()


def test_containers(node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image) -> None:
    """A container's snapshot stands on the topmost layer under the container's id, is measured, and goes."""
    registry.push("app", "1", image)
    image_id = node.pull_there(f"{registry.address}/app:1")
    (found,) = node.catalogue.images()
    manifest = found.manifests[f"{registry.address}/app:1"]
    snapshot = node.store.add_snapshot(Snapshot("c1", 9, "fake", image_id, manifest, found.chain_id))

    prepared = node.snapshotters.prepare(snapshot)

    assert fake.found["c1"].parent == chain(image)[2]
    assert node.snapshotters.prepare(snapshot) == prepared
    assert f"upperdir={prepared.upper_dir}" in prepared.mounts[0].options
    node.usage.measure()
    assert node.usage.by_snapshotter()["fake"].bytes == 8192
    node.snapshotters.remove(snapshot)
    node.snapshotters.remove(snapshot)
    assert "c1" not in fake.found

    fake.found.clear()
    with pytest.raises(FailedPrecondition, match="pull the image again"):
        node.snapshotters.prepare(snapshot)


def test_an_image_gets_where_it_is_wanted(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """Layers that are in one snapshotter alone are unpacked into another from their blobs, in either direction."""
    registry.push("app", "1", image)
    node.pull(f"{registry.address}/app:1")
    (found,) = node.catalogue.images()
    manifest = found.manifests[f"{registry.address}/app:1"]

    assert node.ready.possible(found, "fake", Patience(10, "status"))
    node.store.remove_names([f"{registry.address}/app:1"])
    (found,) = node.catalogue.images()
    node.ready.ensure(found, manifest, "fake", ANYBODY, Patience(10, "prepare"))
    assert fake.names(pb.COMMITTED) == set(chain(image))
    assert node.catalogue.images()[0].names == found.names  # the name that was taken away does not come back

    node.store.forget_lost_layers(node.store.layer_names())
    node.pull_there(f"{registry.address}/app:1")
    assert node.store.chain(found.chain_id) is None
    (found,) = node.catalogue.images()
    node.ready.ensure(found, manifest, "", ANYBODY, Patience(10, "prepare"))
    assert len(node.store.chain(found.chain_id) or ()) == 3


def test_an_image_that_cannot_get_there(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """Without blobs the error says where the layers are wanted and what to do; an unknown snapshotter is named."""
    registry.push("app", "1", image)
    fake.takes = set(chain(image))
    node.pull_there(f"{registry.address}/app:1")
    (found,) = node.catalogue.images()
    manifest = found.manifests[f"{registry.address}/app:1"]

    patience = Patience(10, "status")
    assert [node.ready.possible(found, name, patience) for name in ("fake", "", "overlayfs")] == [True, False, False]
    fake.fails = {"Stat": grpc.StatusCode.INTERNAL}
    assert node.ready.possible(found, "fake", patience)
    fake.fails = {}
    with pytest.raises(FailedPrecondition, match=r"not in snapshotter overlayfs.*pull it for a runtime handler"):
        node.ready.ensure(found, manifest, "", ANYBODY, Patience(10, "prepare"))
    with pytest.raises(InvalidArgument, match="'zfs' is not known; there are overlayfs, native, fake"):
        node.ready.ensure(found, manifest, "zfs", ANYBODY, Patience(10, "prepare"))


def test_an_image_that_takes_long_to_get_there(
    monkeypatch: pytest.MonkeyPatch, node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """The caller is told to come back, the work goes on, and is done once."""
    monkeypatch.setattr("image_svc.proxied.ready.WAIT", 0.2)
    registry.push("app", "1", image)
    node.pull(f"{registry.address}/app:1")
    (found,) = node.catalogue.images()
    manifest = found.manifests[f"{registry.address}/app:1"]
    node.unpack.gate.clear()

    for _ in range(2):
        with pytest.raises(Unavailable, match=r"is being unpacked into snapshotter fake.*try again"):
            node.ready.ensure(found, manifest, "fake", ANYBODY, Patience(10, "prepare"))
    node.unpack.gate.set()
    monkeypatch.undo()
    node.ready.ensure(found, manifest, "fake", ANYBODY, Patience(10, "prepare"))
    assert [method for method, _ in fake.calls].count("Commit") == 3


def test_garbage(node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image) -> None:
    """Layers go from the top down when no image and no container needs them, and claimed ones stay."""
    registry.push("app", "1", image)
    image_id = node.pull_there(f"{registry.address}/app:1")
    (found,) = node.catalogue.images()
    manifest = found.manifests[f"{registry.address}/app:1"]
    node.store.add_snapshot(Snapshot("c1", 9, "fake", image_id, manifest, found.chain_id))
    node.store.remove_names(found.names)
    node.garbage.collect()
    assert fake.names(pb.COMMITTED) == set(chain(image))

    node.store.remove_snapshot("c1")
    with node.leases.lease() as lease:
        lease.claim(*chain(image)[:1])
        node.garbage.collect()
        assert fake.names(pb.COMMITTED) == {chain(image)[0]}
    fake.calls.clear()
    node.garbage.collect()
    assert fake.found == {}
    assert node.store.proxied_usage() == {}


def test_garbage_of_a_snapshotter_that_is_away(
    node: ProxiedNode, fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """What cannot be removed now is removed later; what somebody else stands on stays."""
    registry.push("app", "1", image)
    node.pull_there(f"{registry.address}/app:1")
    (found,) = node.catalogue.images()
    node.store.remove_names(found.names)
    fake.fails = {"Remove": grpc.StatusCode.INTERNAL}
    node.garbage.collect()
    assert len(node.store.unused_proxied()) == 3

    fake.fails = {}
    fake.found["theirs"] = pb.Info(name="theirs", parent=chain(image)[0], kind=pb.ACTIVE)
    node.garbage.collect()
    assert set(fake.found) == {chain(image)[0], "theirs"}


def test_what_an_earlier_process_was_unpacking_goes(node: ProxiedNode, fake: FakeSnapshots) -> None:
    """Keys of ours that no living process made are removed, once, and nobody else's."""
    for key in ("extract-0123456789ab-1 sha256:aa", "k8s.io/7/extract-1 sha256:aa", "c1"):
        fake.found[key] = pb.Info(name=key, kind=pb.ACTIVE)

    node.garbage.collect()

    assert set(fake.found) == {"k8s.io/7/extract-1 sha256:aa", "c1"}


def test_a_proxy_without_a_root(tmp_path: Path, node: ProxiedNode) -> None:
    """A snapshotter of which nobody knows where its mounts lie is refused before it is asked for anything."""
    proxies = Proxies({"bare": ProxyPlugin("snapshot", str(tmp_path / "s"), {})})
    helper = cast(UnpackClient, node.unpack)
    with pytest.raises(FailedPrecondition, match=r"proxy_plugins\.bare\.exports has no root"):
        Snapshotters("overlayfs", tmp_path, helper, node.store, proxies).get("bare")
    proxies.close()


def test_a_snapshotter_that_is_not_configured_any_more(node: ProxiedNode) -> None:
    """What is recorded of it is forgotten, without a call: nothing else is kept from going."""
    node.store.add_proxied("former", "sha256:aa", "")
    node.snapshotters.remove(Snapshot("c1", 9, "former", "sha256:i", "sha256:m", "sha256:aa"))

    node.garbage.collect()

    assert node.store.unused_proxied() == []
