"""The store, the read model over it and the garbage collector keep what is needed and nothing else."""

import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from image_svc.catalogue import Catalogue
from image_svc.patience import Patience
from image_svc.store import Layer, NewImage, NewLayer, Snapshot, Store, StoredLayer
from image_svc.upkeep.gc import PARTIAL_AGE
from support.fake_registry import FakeRegistry
from support.image_node import Node
from support.images import Image, digest


def sha(text: str) -> str:
    """Return the digest of a text."""
    return digest(text.encode())


def new_image(number: int, *names: str, user: str = "", encrypted: bool = False) -> NewImage:
    """Return an image of one layer."""
    layer = Layer(sha(f"blob{number}"), "t", 10, sha(f"diff{number}"), sha(f"chain{number}"), {"a": "b"})
    manifest = sha(f"manifest{number}{encrypted}")
    return NewImage(sha(f"config{number}"), manifest, "t", manifest, 30, encrypted, user, (layer,), names)


@pytest.fixture
def catalogue(node: Node) -> Catalogue:
    """Return the read model of a store that holds two images."""
    node.store.add_image(new_image(1, "docker.io/library/one:1", f"docker.io/library/one@{sha('x')}", user="www:www"))
    node.store.add_image(new_image(2, "docker.io/library/two:latest", user="1000"))
    return Catalogue(node.store, ("two", ""))


def test_find(catalogue: Catalogue) -> None:
    """An image is found by id, with or without its algorithm, by a prefix, by every name."""
    one = sha("config1")
    for text in (one, one[7:], one[7:20], one[:20], "one:1", "docker.io/library/one:1", f"one@{sha('x')}"):
        assert catalogue.find(text).id == one
    assert catalogue.find("two").id == sha("config2")


@pytest.mark.parametrize("text", ["nosuch", sha("nosuch"), sha("nosuch")[7:], "one"])
def test_not_found(catalogue: Catalogue, text: str) -> None:
    """What is not here is NotFound, which names it."""
    with pytest.raises(NotFound, match=text):
        catalogue.find(text)


def test_ambiguous_prefix(node: Node) -> None:
    """A prefix of two ids is refused, unless it is also a name."""
    prefix = "sha256:"
    images = [new_image(n, f"q.io/x:{n}") for n in range(40)]
    for each in images:
        node.store.add_image(each)
    catalogue = Catalogue(node.store, ())
    digits = [each.id.removeprefix(prefix)[0] for each in images]
    double = next(digit for digit in digits if digits.count(digit) > 1)

    with pytest.raises(InvalidArgument, match="beginning of"):
        catalogue.find(double)


def test_messages(catalogue: Catalogue) -> None:
    """Lists carry pinned, and a user by number or by name."""
    one, two = catalogue.messages()

    assert (one.username, one.HasField("uid"), one.pinned) == ("www", False, False)
    assert (two.username, two.uid.value, two.pinned) == ("", 1000, True)


def test_lists_come_from_memory(node: Node, catalogue: Catalogue) -> None:
    """Nothing is read again until something has changed."""
    first = catalogue.messages()
    assert catalogue.messages()[0] is first[0]
    node.store.add_image(new_image(3, "q.io/three:1"))
    assert len(catalogue.messages()) == 3


def test_reads_wait_for_no_commit(node: Node, catalogue: Catalogue) -> None:
    """Lists, look-ups and reads answer with what was committed while a change is under way in another thread."""
    node.store.add_blob(sha("blob"), 7)
    with ThreadPoolExecutor(1) as other, node.store._change() as db:
        db.execute("DELETE FROM names")
        db.execute("DELETE FROM blobs")
        assert other.submit(catalogue.find, "one:1").result(timeout=60).id == sha("config1")
        assert len(other.submit(catalogue.messages).result(timeout=60)) == 2
        assert other.submit(node.store.usage).result(timeout=60) == (7, 1)


def test_a_change_that_fails_is_not_listed(node: Node, catalogue: Catalogue) -> None:
    """Whoever listens is told of what was committed and of nothing else."""
    told: list[None] = []
    node.store.listeners.append(lambda: told.append(None))
    with suppress(ValueError), node.store._change(listed=True) as db:
        db.execute("DELETE FROM names")
        raise ValueError

    assert (len(catalogue.images()), told) == (2, [])


def test_remove_names(node: Node, catalogue: Catalogue) -> None:
    """An image goes with its last name; doing it again is fine."""
    node.store.remove_names(["docker.io/library/one:1"])
    assert catalogue.find(sha("config1")).repo_tags == ()
    for _ in range(2):
        node.store.remove_names([f"docker.io/library/one@{sha('x')}"])
        assert [each.id for each in catalogue.images()] == [sha("config2")]


def test_encrypted_twin(node: Node) -> None:
    """A plain and an encrypted manifest share an image; which of them came encrypted stays known by name."""
    node.store.add_image(new_image(1, "q.io/plain:1"))
    node.store.add_image(new_image(1, "q.io/locked:1", encrypted=True))

    (found,) = Catalogue(node.store, ()).images()

    assert found.encrypted == {found.manifests["q.io/locked:1"]}
    assert found.manifests["q.io/plain:1"] not in found.encrypted


def test_survives_a_restart(tmp_path: Path) -> None:
    """What was committed is there again; a newer format is refused."""
    store = Store(tmp_path / "images.db")
    store.add_image(new_image(1, "q.io/x:1"))
    names = store.new_names(3)
    store.close()

    store = Store(tmp_path / "images.db")
    assert names == [1, 2, 3]
    [later] = store.new_names(1)
    assert later > 3
    (layer,) = store.manifest_layers(new_image(1).manifest)
    assert (layer, layer.annotations) == (new_image(1).layers[0], {"a": "b"})
    store.close()

    with sqlite3.connect(tmp_path / "images.db") as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    with pytest.raises(FailedPrecondition, match="newer"):
        Store(tmp_path / "images.db")


def test_layers_committed_twice(node: Node) -> None:
    """The first of two pulls that unpacked one chain wins; the other learns that its directory does not count."""
    first = NewLayer(sha("c"), "", sha("d"), 1, 10, 2)

    assert node.store.add_image(new_image(1, "q.io/x:1"), [first], {sha("b"): 10}) == {1}
    assert node.store.add_image(new_image(1, "q.io/x:1"), [replace(first, name=2)], {sha("b"): 10}) == set()
    assert node.store.blobs() == {sha("b")}
    assert node.store.chain(sha("c")) == [StoredLayer(sha("c"), "", 1)]
    assert node.store.chain(sha("unknown")) is None
    assert node.store.chain("") == []


def test_snapshots(node: Node) -> None:
    """A key keeps the snapshot it was given first."""
    made = Snapshot("c1", 5, "overlayfs", "i", "m", "")

    assert node.store.add_snapshot(made) == made
    assert node.store.add_snapshot(replace(made, name=6)) == made
    assert node.store.snapshots(before=time.time_ns()) == [made]
    assert node.store.snapshots(before=1) == []
    node.store.remove_snapshot("c1")
    node.store.remove_snapshot("c1")
    assert node.store.snapshot("c1") is None


def test_collection(node: Node, registry: FakeRegistry, image: Image) -> None:
    """What a removed image leaves goes, except layers that a container stands on."""
    registry.push("app", "1", image)
    node.pull(f"{registry.address}/app:1")
    (found,) = node.catalogue.images()
    node.collector.collect()
    assert len(list(node.content.digests())) == 4
    second = node.store.manifest_layers(next(iter(found.manifests.values())))[1]
    node.store.add_snapshot(Snapshot("c1", node.store.new_names(1)[0], "overlayfs", found.id, "m", second.chain_id))

    node.store.remove_names(found.names)
    node.collector.collect()

    assert list(node.content.digests()) == []
    assert set(node.unpack.trees) == {"1", "2"}
    node.store.remove_snapshot("c1")
    node.collector.collect()
    assert node.unpack.trees == {}


def test_collection_spares_what_a_pull_claims(node: Node, registry: FakeRegistry, image: Image) -> None:
    """Blobs and layers that a pull under way counts on are left alone until it ends."""
    registry.push("app", "1", image)
    node.pull(f"{registry.address}/app:1")
    (found,) = node.catalogue.images()
    layers = node.store.manifest_layers(next(iter(found.manifests.values())))
    with node.leases.lease() as lease:
        lease.claim(layers[0].digest, layers[-1].chain_id)
        node.store.remove_names(found.names)
        node.collector.collect()
        assert list(node.content.digests()) == [layers[0].digest]
        assert node.store.layer(layers[-1].chain_id) is not None
    node.collector.collect()
    assert list(node.content.digests()) == []


def test_discarded_layers(make_node: Callable[..., Node], registry: FakeRegistry, image: Image) -> None:
    """With discard_unpacked_layers only manifest and configuration stay as blobs, and the image stays whole."""
    registry.push("app", "1", image)
    node = make_node(options={"discard_unpacked_layers": True})
    node.pull(f"{registry.address}/app:1")

    node.collector.collect()

    assert set(node.content.digests()) == {digest(image.manifest()), digest(image.blobs()[0])}
    (found,) = node.catalogue.images()
    assert [each.name for each in node.store.chain(found.chain_id) or ()] == [1, 2, 3]


def test_old_partials(node: Node) -> None:
    """A partial download is kept for a day."""
    fresh, old = node.content.partial(sha("fresh")), node.content.partial(sha("old"))
    for path, age in ((fresh, 60.0), (old, PARTIAL_AGE + 60)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)

    node.collector.collect()

    assert (fresh.exists(), old.exists()) == (True, False)


def test_recovery(make_node: Callable[..., Node], registry: FakeRegistry, image: Image) -> None:
    """After a crash: what has no record goes, and an image that lost a layer is listed no more."""
    registry.push("app", "1", image)
    node = make_node()
    node.pull(f"{registry.address}/app:1")
    unpack = node.unpack
    unpack.trees["9"] = []
    node.store.new_names(10)
    node.content.path(sha("stray")).write_bytes(b"stray")
    node.content.remove(digest(image.manifest()))

    node = make_node(unpack=unpack)
    node.recovery.blobs()
    node.recovery.directories()
    assert "9" not in unpack.trees
    assert not node.content.has(sha("stray"))
    assert digest(image.manifest()) not in node.store.blobs()
    assert len(node.catalogue.images()) == 1

    unpack.trees.pop("2")
    node = make_node(unpack=unpack)
    node.recovery.directories()
    assert node.catalogue.images() == []
    node.pull(f"{registry.address}/app:1")
    assert len(node.catalogue.images()) == 1


def test_recovery_without_records(node: Node) -> None:
    """Directories whose database is lost go, and their names are not handed out again."""
    node.unpack.trees["7"] = []
    node.unpack.settled.append("7")

    node.recovery.directories()

    assert node.unpack.trees == {}
    assert node.store.new_names(1) == [8]


def test_waiting_for_the_helper(node: Node) -> None:
    """Who needs directories waits for the helper, and is told so if it does not come."""
    with pytest.raises(Unavailable, match="waits for its unpack helper"):
        node.recovery.wait(Patience(0.1, "pull"))

    node.recovery.run()
    node.recovery.wait(Patience(0.1, "pull"))


def test_name_comes_before_a_prefix(node: Node) -> None:
    """An image named like the beginning of another's id is found by its name."""
    images = [new_image(n, f"q.io/x:{n}") for n in range(3)]
    name = images[0].id.removeprefix("sha256:")[:4]
    images[1] = new_image(1, f"docker.io/library/{name}:latest")
    for each in images:
        node.store.add_image(each)
    catalogue = Catalogue(node.store, ())

    assert catalogue.find(name).id == images[1].id
    assert catalogue.find(f"sha256:{name}").id == images[0].id
    assert catalogue.find(images[0].id.removeprefix("sha256:")[:5]).id == images[0].id


def test_sha512_id(node: Node) -> None:
    """An image whose configuration is named by sha512 is found by its id."""
    changed = replace(new_image(1, "q.io/x:1"), id="sha512:" + "a" * 128)
    node.store.add_image(changed)

    assert Catalogue(node.store, ()).find(changed.id).id == changed.id


def test_content_is_held_while_its_target_has_a_name(node: Node) -> None:
    """Blobs of platforms that this node does not run stay with the name, and become garbage with its last."""
    target = sha("manifest1False")
    node.store.add_image(new_image(1, "q.io/one:1", "q.io/one:2"))
    node.store.add_blob(sha("arm"), 7)
    node.store.hold(target, [sha("arm")])

    assert node.store.unused_blobs(discard_layers=True) == []
    node.store.remove_names(["q.io/one:1"])
    assert node.store.held(target) == {sha("arm")}
    node.store.remove_names(["q.io/one:2"])
    assert node.store.unused_blobs() == [sha("arm")]
    assert node.store.held(target) == set()


def test_content_that_is_not_unpacked_is_no_image(node: Node) -> None:
    """Its name is kept with its blobs beside the images, moves from one kind to the other, and goes like any other."""
    node.store.add_blob(sha("enc"), 7)
    node.store.add_content(["q.io/enc:1"], sha("target"), [sha("enc"), sha("target")])

    assert node.catalogue.images() == []
    assert [each.name for each in node.store.content_names()] == ["q.io/enc:1"]
    assert node.store.unused_blobs() == []

    node.store.add_image(new_image(1, "q.io/enc:1"))
    assert node.store.content_names() == []
    assert node.store.targets() == {"q.io/enc:1": sha("manifest1False")}
    node.store.add_content(["q.io/enc:1"], sha("manifest1False"), [])
    assert [image.repo_tags for image in node.catalogue.images()] == [("q.io/enc:1",)]

    node.store.add_content(["q.io/enc:1"], sha("target"), [sha("enc")])
    assert node.catalogue.images() == []
    node.store.remove_names(["q.io/enc:1"])
    assert node.store.targets() == {}
    assert node.store.unused_blobs() == [sha("enc")]


def test_names_of_content_become_those_of_an_image(node: Node) -> None:
    """Every name of the target follows once it is unpacked, one that went elsewhere meanwhile does not."""
    target, manifest = sha("manifest1False"), new_image(1).manifest
    node.store.add_content(["q.io/enc:1", "q.io/enc:2", "q.io/enc:3"], target, [target])
    node.store.add_content(["q.io/enc:3"], sha("other"), [])
    node.store.promote(target, manifest)
    assert {each.name for each in node.store.content_names()} == {"q.io/enc:1", "q.io/enc:2", "q.io/enc:3"}

    node.store.add_image(new_image(1, "q.io/enc:1"))
    node.store.promote(target, manifest)
    assert [image.repo_tags for image in node.catalogue.images()] == [("q.io/enc:1", "q.io/enc:2")]
    assert [each.name for each in node.store.content_names()] == ["q.io/enc:3"]


def test_a_database_of_the_first_format_is_brought_up(tmp_path: Path) -> None:
    """What an older Bulkhead wrote is read, and has the tables that came later."""
    path = tmp_path / "old.db"
    Store(path).close()
    later = ("held", "content_names", "proxied_layers", "provisional_names")
    with sqlite3.connect(path) as raw:
        raw.executescript(f"{''.join(f'DROP TABLE {table};' for table in later)} PRAGMA user_version=1")
    raw.close()

    opened = Store(path)
    opened.add_content(["q.io/x:1"], sha("t"), [sha("t")])
    assert opened.held(sha("t")) == {sha("t")}
    opened.close()
