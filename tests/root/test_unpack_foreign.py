"""Layers unpacked into the directories of another process's snapshotter are what they are in our own."""

import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import FailedPrecondition, PermissionDenied
from image_svc.snapshots import Mount, open_snapshotter
from support import unpack
from support.images import Layer
from support.unpack import Helper

pytestmark = pytest.mark.root

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def theirs() -> Iterator[Path]:
    """Make the directory of an overlay snapshotter, as containerd's has it."""
    with tempfile.TemporaryDirectory(prefix="bhforeign") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def helper(theirs: Path) -> Iterator[Helper]:
    """Run one helper, to which that snapshotter is known as `plain`."""
    table = f'[proxy_plugins.plain]\ntype = "snapshot"\naddress = "{theirs}/sock"\n'
    with unpack.running(more=f'{table}[proxy_plugins.plain.exports]\nroot = "{theirs}"\n') as running:
        yield running


def apply(helper: Helper, theirs: Path, *layers: Layer) -> list[str]:
    """Unpack layers, base first, each into a directory of its own; return these, the topmost first."""
    lowers: list[str] = []
    for layer in layers:
        target = theirs / "snapshots" / str(next(_NUMBERS)) / "fs"
        target.mkdir(parents=True)
        here, there = os.pipe()
        feeder = threading.Thread(target=unpack.feed, args=(there, layer.tar()))
        feeder.start()
        try:
            helper.client.apply("plain", str(target), lowers, here, unpack.LIMITS)
        finally:
            os.close(here)
            feeder.join()
        lowers.insert(0, str(target))
    return lowers


def seen(helper: Helper, theirs: Path, *layers: Layer) -> dict[str, dict[str, Any]]:
    """Return what a container sees of some layers, which must be what our own snapshots of them show."""
    lowers = apply(helper, theirs, *layers)
    upper, work = theirs / f"upper{next(_NUMBERS)}", theirs / f"work{next(_NUMBERS)}"
    for each in (upper, work):
        each.mkdir()
    options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={':'.join(lowers)}")
    with unpack.mounted([Mount("overlay", "overlay", options)], helper.directory / "merged") as at:
        found = unpack.look(at)
    own = open_snapshotter("overlayfs", helper.snapshots.parent, helper.client)
    prepared = own.prepare(str(next(helper.names)), helper.layers(*(layer.tar() for layer in layers)))
    with unpack.mounted(prepared.mounts, helper.directory / "merged") as at:
        same = unpack.look(at)
    for view in (found, same):
        del view["."]  # that of the writable directory, which here the test has made
    assert found == same
    return found


def test_an_opaque_root_hides_everything_below(helper: Helper, theirs: Path) -> None:
    """Its layer's own files, and those of the layers upon it, are all that is left; its times stay."""
    base = Layer().dir("d").file("d/old", "1").dir("gone").file("gone/f", "1").file("f", "1").symlink("l", "f")
    upper = Layer().dir("./", 0o711).file(".wh..wh..opq").dir("d").file("d/new", "2").file("f", "2")

    assert set(seen(helper, theirs, base, upper, Layer().file("above", "3"))) == {"above", "d", "d/new", "f"}
    target = Path(apply(helper, theirs, base, upper)[0])
    assert (target.stat().st_mode & 0o7777, target.stat().st_mtime_ns) == (0o711, 1_700_000_000 * 10**9)


def test_opaque_roots_upon_each_other(helper: Helper, theirs: Path) -> None:
    """Nothing comes back through the second, though the first has whiteouts of its own by then."""
    base = Layer().dir("d").file("d/old", "1").file("f", "1")
    middle = Layer().file(".wh..wh..opq").dir("d").file("d/middle", "2").file("g", "2")
    upper = Layer().file(".wh..wh..opq").dir("d").file("d/new", "3").file("f", "3")

    assert set(seen(helper, theirs, base, middle, upper)) == {"d", "d/new", "f"}


def test_an_opaque_root_and_other_opaque_directories(helper: Helper, theirs: Path) -> None:
    """The marks that a layer has besides are set as ever, and what it implies has its metadata from beneath."""
    base = Layer().dir("a", 0o700, uid=7).file("a/old", "1").dir("b").dir("b/c").file("b/c/old", "1")
    between = Layer().file("a/key", "2").file("b/c/.wh..wh..opq").file("b/c/new", "2")
    upper = Layer().file(".wh..wh..opq").dir("b").dir("b/c").file("b/c/.wh..wh..opq").file("b/c/last", "3")

    found = seen(helper, theirs, base, between)
    assert set(found) == {"a", "a/key", "a/old", "b", "b/c", "b/c/new"}
    assert (found["a"]["mode"], found["a"]["owner"]) == (0o700, (7, 0))
    assert set(seen(helper, theirs, base, between, upper)) == {"b", "b/c", "b/c/last"}


def test_an_opaque_root_of_the_first_layer(helper: Helper, theirs: Path) -> None:
    """Where nothing is beneath, nothing is hidden."""
    assert set(seen(helper, theirs, Layer().file(".wh..wh..opq").file("f", "1"))) == {"f"}


def test_directories_that_are_not_to_be_written(helper: Helper, theirs: Path) -> None:
    """One outside the snapshotter's, one reached by a link and one that is not empty are refused, and left alone."""
    outside = Path(tempfile.mkdtemp(prefix="bhforeign"))
    (theirs / "link").symlink_to(outside)
    (theirs / "full").mkdir()
    (theirs / "full" / "f").touch()
    refused = {
        str(outside): (PermissionDenied, "no snapshot's directory"),
        str(theirs / "link"): (FailedPrecondition, "Too many levels"),
        str(theirs / "full"): (FailedPrecondition, "is not empty"),
        str(theirs / "nothing"): (FailedPrecondition, "No such file"),
    }

    with open("/dev/null", "rb") as nothing:
        for path, (kind, why) in refused.items():
            with pytest.raises(kind, match=why):
                helper.client.apply("plain", path, [], nothing.fileno(), unpack.LIMITS)
        with pytest.raises(PermissionDenied, match="'other' is no proxy plugin"):
            helper.client.apply("other", str(theirs / "full"), [], nothing.fileno(), unpack.LIMITS)

    assert list(outside.iterdir()) == []
    outside.rmdir()
