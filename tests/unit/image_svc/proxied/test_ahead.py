"""When the layers of an image that goes into a proxy snapshotter are fetched."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.config.model import Bulkhead
from bulkhead.errors import Cancelled, NotFound
from bulkhead.proto.containerd import snapshots_pb2 as pb
from image_svc.patience import Patience
from image_svc.pulling.progress import LayerState, Progress
from support.fake_registry import FakeRegistry, Handler
from support.fake_snapshots import FakeSnapshots
from support.images import Image, digest
from support.proxied_node import Applying, ProxiedNode, chain

TOC = "containerd.io/snapshot/stargz/toc.digest"
#: Seconds in which what must not happen would have happened.
MOMENT = 0.3


@pytest.fixture
def make(tmp_path: Path, socket: Path) -> Iterator[Callable[..., ProxiedNode]]:
    """Return a maker of the one node, with options of its own."""
    made: list[ProxiedNode] = []

    def node(**fields: Any) -> ProxiedNode:
        made.append(ProxiedNode(tmp_path, unpack=Applying(), **fields).join(socket))
        return made[-1]

    yield node
    for each in made:
        each.proxies.close()
        each.close()


class Pulling:
    """A pull under way in a thread."""

    def __init__(self, node: ProxiedNode, name: str, snapshotter: str = "fake") -> None:
        self.patience = Patience(60.0, "pull")
        self.progress = Progress(name)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(node, name, snapshotter))
        self._thread.start()

    def _run(self, node: ProxiedNode, name: str, snapshotter: str) -> None:
        try:
            node.puller.pull(name, None, self.patience, progress=self.progress, snapshotter=snapshotter)
        except Exception as error:  # told to whoever waits
            self._failure = error

    def end(self) -> None:
        """Wait for it; its failure is raised."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure


def until(true: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def asked(registry: FakeRegistry, image: Image) -> list[bool]:
    """Tell of which layers a registry was asked for the blob."""
    return [bool(registry.asked(f"/blobs/{digest(blob)}")) for blob in image.blobs()[1]]


def for_lazy(registry: FakeRegistry, image: Image, positions: set[int]) -> str:
    """Push an image of which some layers carry what stargz looks for, and return its name."""
    registry.push("app", "1", image)
    manifest = json.loads(image.manifest())
    for position in positions:
        manifest["layers"][position]["annotations"] = {TOC: f"sha256:{position:064}"}
    registry.push_manifest("app", "lazy", manifest, manifest["mediaType"])
    return f"{registry.address}/app:lazy"


def test_later_layers_arrive_while_earlier_ones_are_unpacked(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """Every blob is here before the first layer is done; each is fetched once, and all end as they would have."""
    node = make()
    registry.push("app", "1", image)
    node.unpack.gate.clear()

    pull = Pulling(node, f"{registry.address}/app:1")
    until(lambda: [layer.received for layer in pull.progress.layers] == [len(blob) for blob in image.blobs()[1]])
    assert fake.names(pb.COMMITTED) == set()
    assert [layer.state for layer in pull.progress.layers[1:]] == [LayerState.DOWNLOADING] * 2
    node.unpack.gate.set()
    pull.end()

    assert [call for call in fake.calls if call[0] == "Commit"] == [("Commit", each) for each in chain(image)]
    assert [len(registry.asked(f"/blobs/{digest(blob)}")) for blob in image.blobs()[1]] == [1, 1, 1]
    assert all(node.content.has(digest(blob)) for blob in image.blobs()[1])
    assert node.layer_puller.jobs.keys() == set()


def test_the_limit_on_downloads_holds(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """With one download at a time the layer whose turn it is comes first, and the others wait for it."""
    node = make(options={"max_concurrent_downloads": 1})
    registry.push("app", "1", image)
    blobs = [digest(blob) for blob in image.blobs()[1]]
    free = threading.Event()
    registry.once(f"/blobs/{blobs[0]}", lambda _: not free.wait(60))

    pull = Pulling(node, f"{registry.address}/app:1")
    until(lambda: asked(registry, image)[0])
    time.sleep(MOMENT)
    assert asked(registry, image) == [True, False, False]
    free.set()
    pull.end()

    assert asked(registry, image) == [True, True, True]


def test_nothing_is_fetched_before_a_layer_was_left_to_us(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """While a snapshotter makes up its mind about the first layer, none is fetched."""
    node = make()
    registry.push("app", "1", image)
    fake.takes = set(chain(image))
    fake.slow = 0.05

    pull = Pulling(node, f"{registry.address}/app:1")
    pull.end()

    assert asked(registry, image) == [False, False, False]
    assert [layer.state for layer in pull.progress.layers] == [LayerState.PRESENT] * 3


@pytest.mark.parametrize(("marked", "first"), [({1}, {0, 2}), ({0, 2}, {0, 2}), ({0, 1, 2}, {0, 1, 2})])
def test_layers_for_lazy_snapshotters_are_told_apart(
    make: Callable[..., ProxiedNode],
    fake: FakeSnapshots,
    registry: FakeRegistry,
    image: Image,
    marked: set[int],
    first: set[int],
) -> None:
    """A layer that was left to us says nothing of those that the image's maker prepared otherwise than it."""
    node = make()
    name = for_lazy(registry, image, marked)
    fake.takes = {each for position, each in enumerate(chain(image)) if position not in first}
    node.unpack.gate.clear()

    pull = Pulling(node, name)
    wanted = [position in first for position in range(3)]
    until(lambda: asked(registry, image) == wanted)
    node.unpack.gate.set()
    pull.end()

    assert asked(registry, image) == wanted
    assert fake.names(pb.COMMITTED) == set(chain(image))


def test_what_proves_unneeded_is_called_off(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """The download of a layer that the snapshotter then takes is ended, and the pull does not wait for it."""
    node = make()
    registry.push("app", "1", image)
    fake.takes = {chain(image)[1]}
    blobs = [digest(blob) for blob in image.blobs()[1]]
    hung_up = threading.Event()

    def trickle(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image.blobs()[1][1])))
        handler.end_headers()
        handler.wfile.write(image.blobs()[1][1][:1])
        handler.connection.settimeout(8)
        assert not handler.rfile.read(1)
        hung_up.set()
        return handler.break_off()

    registry.on(f"/blobs/{blobs[1]}", trickle)
    node.unpack.gate.clear()

    pull = Pulling(node, f"{registry.address}/app:1")
    until(lambda: all(asked(registry, image)))
    node.unpack.gate.set()
    pull.end()

    assert hung_up.wait(30)
    until(lambda: node.layer_puller.jobs.keys() == set())
    assert [node.content.has(blob) for blob in blobs] == [True, False, True]
    shown = pull.progress.layers[1]
    assert (shown.state, shown.received) == (LayerState.PRESENT, shown.size)


def test_what_fails_ahead_is_tried_again_in_its_turn(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """A blob that a registry did not have, or had damaged, before it was needed does not fail the pull that gets it."""
    node = make()
    registry.push("app", "1", image)
    blobs = [digest(blob) for blob in image.blobs()[1]]
    registry.once(f"/blobs/{blobs[1]}", lambda handler: handler.reply(404))
    registry.once(f"/blobs/{blobs[2]}", lambda handler: handler.reply(200, bytes(len(image.blobs()[1][2]))))
    node.unpack.gate.clear()

    pull = Pulling(node, f"{registry.address}/app:1")
    until(lambda: all(asked(registry, image)))
    node.unpack.gate.set()
    pull.end()

    assert fake.names(pb.COMMITTED) == set(chain(image))
    assert all(node.content.has(blob) for blob in blobs)


def test_what_is_missing_fails_the_pull(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """A blob that nobody has is not tried without end; the layers beneath it stay, and no download goes on."""
    node = make()
    registry.push("app", "1", image)
    blobs = [digest(blob) for blob in image.blobs()[1]]
    registry.on(f"/blobs/{blobs[1]}", lambda handler: handler.reply(404))

    with pytest.raises(NotFound, match=blobs[1]):
        node.pull_there(f"{registry.address}/app:1")

    assert len(registry.asked(f"/blobs/{blobs[1]}")) <= 2
    assert fake.names(pb.COMMITTED) == {chain(image)[0]}
    assert fake.names(pb.ACTIVE) == set()
    until(lambda: node.layer_puller.jobs.keys() == set())


def test_a_pull_that_is_called_off_fetches_no_more(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """With the pull end the downloads that it began ahead."""
    node = make()
    registry.push("app", "1", image)
    free = threading.Event()
    for blob in image.blobs()[1]:
        registry.on(f"/blobs/{digest(blob)}", lambda _: not free.wait(60))

    pull = Pulling(node, f"{registry.address}/app:1")
    until(lambda: all(asked(registry, image)))
    pull.patience.cancel()
    with pytest.raises(Cancelled):
        pull.end()

    until(lambda: node.layer_puller.jobs.keys() == set())
    assert fake.found == {}
    free.set()


def test_two_pulls_fetch_once(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """A pull into our own snapshots and one into a proxy share what is fetched ahead."""
    node = make()
    registry.push("app", "1", image)
    node.unpack.gate.clear()

    pulls = [Pulling(node, f"{registry.address}/app:1", snapshotter) for snapshotter in ("fake", "overlayfs")]
    for pull in pulls:
        until(lambda pull=pull: sum(layer.received for layer in pull.progress.layers) == pull.progress.total > 0)  # type: ignore[misc]
    node.unpack.gate.set()
    for pull in pulls:
        pull.end()

    assert [len(registry.asked(f"/blobs/{digest(blob)}")) for blob in image.blobs()[1]] == [1, 1, 1]


def test_the_budget_for_unpacking_is_the_nodes(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """While our own snapshots have the only slot, a proxy's layer is fetched and waits for its turn."""
    node = make(bulkhead=Bulkhead(unpack_slots=1))
    base = Image(image.layers[:1])
    registry.push("own", "1", base)
    registry.push("other", "1", Image(image.layers[1:2]))
    node.unpack.gate.clear()

    own = Pulling(node, f"{registry.address}/own:1", "overlayfs")
    until(lambda: any(layer.unpacked for layer in own.progress.layers))
    there = Pulling(node, f"{registry.address}/other:1")
    until(lambda: 0 < there.progress.total == there.progress.received)
    time.sleep(MOMENT)

    assert [layer.unpacked for layer in there.progress.layers] == [0]
    node.unpack.gate.set()
    own.end()
    there.end()


def test_discarded_layers(
    make: Callable[..., ProxiedNode], fake: FakeSnapshots, registry: FakeRegistry, image: Image
) -> None:
    """With discard_unpacked_layers a proxied layer's blob goes, too, once it is unpacked, and the image stays whole."""
    node = make(options={"discard_unpacked_layers": True})
    manifest = registry.push("app", "1", image)
    node.pull_there(f"{registry.address}/app:1")

    node.collector.collect()

    config, layers = image.blobs()
    assert [node.content.has(digest(blob)) for blob in layers] == [False, False, False]
    assert node.content.has(manifest)
    assert node.content.has(digest(config))
    (found,) = node.catalogue.images()
    assert node.ready.has(found, "fake", Patience(10, "status"))
    fake.calls.clear()
    node.pull_there(f"{registry.address}/app:1")
    assert {method for method, _ in fake.calls} == {"Stat"}
