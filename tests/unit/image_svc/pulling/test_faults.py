"""What goes wrong on this side of the network: full and rotten disks, a helper that stands still, others' failures."""

import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from bulkhead.config.model import Registry
from bulkhead.errors import FailedPrecondition, Internal, ResourceExhausted
from image_svc.ingest import Ingest
from image_svc.registry.repository import Repository
from image_svc.store import Snapshot, Store
from image_svc.unpack.client import UnpackClient, Usage
from image_svc.upkeep.usage import ContainerUsage
from support.fake_registry import FakeRegistry, Handler
from support.image_node import Node
from support.images import Image, digest


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every write of a blob fail for lack of space."""

    def refuse(self: Ingest, part: memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Ingest, "write", refuse)


@pytest.mark.usefixtures("full_disk")
def test_full_disk_is_not_the_registrys_fault(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A download that finds the disk full says so at once, with the reference, and is not tried again."""
    registry.push("app", "1", image)
    blob = digest(image.blobs()[1][0])

    with pytest.raises(ResourceExhausted, match=rf"{registry.address}/app@sha256:.*No space left") as caught:
        node.pull(f"{registry.address}/app:1")
    assert "RegistryUnavailable" not in str(caught.value)
    assert len(registry.asked(blob)) <= 2  # the image has two layers of it


def test_unexpected_failure_ends_the_download(
    node: Node, registry: FakeRegistry, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw ends the pull, and no thread waits for bytes that will not come."""
    registry.push("app", "1", image)

    def fail(self: Repository, *_: object, **__: object) -> str:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(Repository, "download", fail)

    with pytest.raises(Internal, match="unforeseen"):
        node.pull(f"{registry.address}/app:1")
    deadline = time.monotonic() + 60
    while any(thread.name == "hash-blob" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rotten_blob_is_fetched_anew(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A finished blob that the disk has spoiled costs a download, not every pull from then on."""
    registry.push("app", "1", image)
    blob = image.blobs()[1][0]
    node.content.store(digest(blob), blob[:-1] + bytes([blob[-1] ^ 1]))

    node.pull(f"{registry.address}/app:1")

    assert node.content.read(digest(blob)) == blob
    assert len(registry.asked(digest(blob))) == 1


def test_failure_of_another_pulls_download(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A blob that another repository's pull could not get is fetched from our own repository."""
    registry.push("good", "1", Image([image.layers[1], image.layers[0]]))
    registry.push("bad", "1", image)
    blob = digest(image.blobs()[1][1])
    begun, gate = threading.Event(), threading.Event()

    def refuse(handler: Handler) -> bool:
        begun.set()
        gate.wait(30)
        return handler.reply(403)

    registry.on(f"/bad/blobs/{blob}", refuse)
    results: list[object] = []

    def pull(name: str) -> None:
        try:
            results.append(node.pull(f"{registry.address}/{name}:1"))
        except Exception as error:
            results.append(type(error).__name__)

    first = threading.Thread(target=pull, args=("bad",))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=pull, args=("good",))
    second.start()
    time.sleep(0.3)
    gate.set()
    first.join(60)
    second.join(60)

    assert "PermissionDenied" in results
    assert digest(Image([image.layers[1], image.layers[0]]).blobs()[0]) in results


def test_store_goes_on_after_a_failed_commit(tmp_path: Path) -> None:
    """A commit that finds the disk full changes nothing, says so, and leaves a store that works."""
    store = Store(tmp_path / "images.db")
    store._connection.execute("PRAGMA max_page_count = 30")

    def fill() -> None:
        with store._change() as db:
            db.executemany("INSERT INTO blobs VALUES (?,1)", [(f"sha256:{n:064x}",) for n in range(10_000)])

    with pytest.raises(ResourceExhausted, match=r"images\.db"):
        fill()

    assert store.blobs() == set()
    store.add_blob("sha256:" + "0" * 64, 1)
    assert len(store.blobs()) == 1
    store.close()


def test_deferred_failure_of_a_commit(tmp_path: Path) -> None:
    """A transaction that fails at its very end is rolled back, and the next one works."""
    store = Store(tmp_path / "images.db")

    def change() -> None:
        with store._change() as db:
            db.execute("PRAGMA defer_foreign_keys = ON")
            db.execute("INSERT INTO names VALUES ('n', 'nowhere', 't')")

    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        change()

    store.add_blob("sha256:" + "0" * 64, 1)
    assert len(store.blobs()) == 1
    store.close()


@pytest.mark.parametrize("user", ["9" * 5000, "x" * 1_000_000, "a\nb", "\ud800"])
def test_user_of_nonsense(node: Node, registry: FakeRegistry, image: Image, user: str) -> None:
    """An image whose user no list could show is refused, and the list goes on to work."""
    registry.push("app", "1", Image(image.layers, {"User": user}))

    with pytest.raises(FailedPrecondition, match="User of"):
        node.pull(f"{registry.address}/app:1")
    assert node.catalogue.messages() == []


def test_long_number_as_user(node: Node, registry: FakeRegistry, image: Image) -> None:
    """A number too large for a user id is listed as a name."""
    registry.push("app", "1", Image(image.layers, {"User": "9" * 200}))

    node.pull(f"{registry.address}/app:1")

    (listed,) = node.catalogue.messages()
    assert listed.username == "9" * 200


@pytest.mark.parametrize("size", [1 << 63, 10**30])
def test_size_beyond_reason(node: Node, registry: FakeRegistry, image: Image, size: int) -> None:
    """A size that no sum could hold is refused by name."""
    registry.push("app", "1", image)
    body = json.loads(image.manifest())
    body["layers"][0]["size"] = size
    registry.push_manifest("app", "1", body, body["mediaType"])

    with pytest.raises(FailedPrecondition, match="is not a number of bytes"):
        node.pull(f"{registry.address}/app:1")


def test_lost_configuration(make_node: Callable[..., Node], registry: FakeRegistry, image: Image) -> None:
    """An image whose configuration is gone is not listed after the next start, and a pull brings it back."""
    registry.push("app", "1", image)
    node = make_node()
    image_id = node.pull(f"{registry.address}/app:1")
    node.content.remove(image_id)

    node = make_node()
    node.recovery.blobs()
    assert node.catalogue.images() == []

    assert node.pull(f"{registry.address}/app:1") == image_id
    assert node.content.has(image_id)


def test_usage_of_containers(node: Node) -> None:
    """All containers are counted at once; one that cannot be now keeps its figures, one that is gone does not."""
    usage = ContainerUsage(node.store, cast(UnpackClient, node.unpack), 10.0)
    for number in (1, 2):
        node.store.add_snapshot(Snapshot(f"c{number}", number, "overlayfs", "i", "m", ""))
        node.unpack.prepare(str(number), [])
    usage.measure()
    assert usage.total() == Usage(8192, 2)

    node.unpack.trees.clear()
    node.store.remove_snapshot("c1")
    usage.measure()
    assert usage.total() == Usage(4096, 1)


def test_unreadable_configuration_is_named(
    make_node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of registries that this user may not look into fails the pull with its path, not silently."""

    stat = Path.stat

    def refuse(self: Path, **how: bool) -> os.stat_result:
        if self.is_relative_to("/etc/closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return stat(self, **how)

    monkeypatch.setattr(Path, "stat", refuse)
    node = make_node(registry=Registry(config_path=("/etc/closed",)))

    with pytest.raises(FailedPrecondition, match=r"/etc/closed/q\.io: Permission denied; image-svc runs without priv"):
        node.pull("q.io/x:1")
