"""The mounts that snapshotters plan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import InvalidArgument
from image_svc.snapshots import Mount, Prepared, open_snapshotter
from image_svc.snapshots.native import Native
from image_svc.snapshots.overlayfs import Overlayfs
from image_svc.unpack.client import UnpackClient

DIRECTORY = Path("/var/lib/bulkhead/io.bulkhead/snapshots")


class Recorder(UnpackClient):
    """A helper that keeps the calls and makes nothing."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))
        self.calls: list[tuple[Any, ...]] = []

    def prepare(self, name: str, chain: Sequence[str], *, timeout: float = 0) -> None:
        self.calls.append(("prepare", name, tuple(chain)))

    def copy(self, name: str, chain: Sequence[str], *, timeout: float = 0) -> None:
        self.calls.append(("copy", name, tuple(chain)))

    def remove(self, name: str, *, timeout: float = 0) -> None:
        self.calls.append(("remove", name))


@pytest.fixture
def client() -> Recorder:
    """Return a fresh recorder."""
    return Recorder()


def overlay(client: Recorder, *, index_off: bool = False) -> Overlayfs:
    """Return the snapshotter under test."""
    return Overlayfs(DIRECTORY, client, index_off=index_off)


def test_a_container_gets_an_overlay_with_the_topmost_layer_first(client: Recorder) -> None:
    """The chain is base first, lowerdir the other way round; upper and work are the snapshot's own."""
    prepared = overlay(client, index_off=True).prepare("9", ["1", "2", "3"])

    base = str(DIRECTORY)
    assert prepared.upper_dir == f"{base}/9/fs"
    assert prepared.mounts == (
        Mount(
            "overlay",
            "overlay",
            (
                "index=off",
                f"workdir={base}/9/work",
                f"upperdir={base}/9/fs",
                f"lowerdir={base}/3/fs:{base}/2/fs:{base}/1/fs",
            ),
        ),
    )
    assert client.calls == [("prepare", "9", ("1", "2", "3"))]


def test_an_empty_image_gets_a_bind(client: Recorder) -> None:
    """Without layers there is nothing to overlay."""
    prepared = overlay(client).prepare("9", [])

    assert prepared == Prepared((Mount("bind", f"{DIRECTORY}/9/fs", ("rw", "rbind")),), f"{DIRECTORY}/9/fs")


def test_views_are_read_only(client: Recorder) -> None:
    """A single layer is bound read-only, several are overlaid without an upper directory; neither makes anything."""
    single = overlay(client).view("9", ["1"])
    several = overlay(client).view("9", ["1", "2"])

    assert single == Prepared((Mount("bind", f"{DIRECTORY}/1/fs", ("ro", "rbind")),), "")
    assert several == Prepared((Mount("overlay", "overlay", (f"lowerdir={DIRECTORY}/2/fs:{DIRECTORY}/1/fs",)),), "")
    assert client.calls == []


def test_eighty_layers_fit_into_a_page_and_127_need_relative_paths(client: Recorder) -> None:
    """Short names keep most images within mount(2)'s page; the largest fit once their directory is left out."""

    def options(layers: int) -> str:
        chain = [str(10_000 + number) for number in range(layers)]
        return ",".join(overlay(client, index_off=True).prepare("99999", chain).mounts[0].options)

    assert len(options(75)) < 4096
    assert len(options(127)) > 4096
    assert len(options(127).replace(f"{DIRECTORY}/", "")) < 4096


@pytest.mark.parametrize("path", ["/srv/a:b/snapshots", "/srv/a,b/snapshots", "/srv/a\\b/snapshots"])
def test_a_root_that_overlay_options_cannot_carry_is_refused(client: Recorder, path: str) -> None:
    """Colons, commas and backslashes separate and escape in the options of an overlay mount."""
    with pytest.raises(InvalidArgument, match="overlayfs"):
        Overlayfs(Path(path), client)


def test_native_binds_a_copy(client: Recorder) -> None:
    """The native snapshotter copies the chain and binds the copy, read-only for a view."""
    native = Native(DIRECTORY, client)

    assert native.prepare("9", ["1", "2"]).mounts == (Mount("bind", f"{DIRECTORY}/9/fs", ("rw", "rbind")),)
    assert native.view("8", ["1"]) == Prepared((Mount("bind", f"{DIRECTORY}/8/fs", ("ro", "rbind")),), "")
    native.remove("9")
    assert client.calls == [("copy", "9", ("1", "2")), ("copy", "8", ("1",)), ("remove", "9")]


@pytest.mark.parametrize("kind", ["overlayfs", "native"])
def test_bad_names_never_reach_the_helper(client: Recorder, kind: str) -> None:
    """A name that is no decimal number, and a layer named twice, are refused at once."""
    snapshotter = open_snapshotter(kind, Path("/var/lib/x"), client)

    assert snapshotter.name == kind
    for name, chain in (("../1", ["1"]), ("9", ["x"]), ("9", ["1", "1"])):
        with pytest.raises(InvalidArgument):
            snapshotter.prepare(name, chain)
    assert client.calls == []


def test_unknown_snapshotters_are_refused(client: Recorder) -> None:
    """The error names the snapshotter and those there are."""
    with pytest.raises(InvalidArgument, match=r"'zfs'.*overlayfs and native"):
        open_snapshotter("zfs", Path("/"), client)
