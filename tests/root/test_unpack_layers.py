"""Layers become what image builders meant, as overlayfs shows them and as the native snapshotter copies them."""

import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from image_svc.snapshots import open_snapshotter
from support import unpack
from support.images import Layer
from support.unpack import Helper

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    """Run one helper for all tests of the module."""
    with unpack.running() as running:
        yield running


def merged(helper: Helper, *layers: Layer) -> dict[str, dict[str, Any]]:
    """Return what containers see of some layers, base first; overlayfs and the native copy must agree."""
    chain = helper.layers(*(layer.tar() for layer in layers))
    root = helper.snapshots.parent
    views = []
    for kind in ("overlayfs", "native"):
        name = str(next(helper.names))
        snapshotter = open_snapshotter(kind, root, helper.client)
        with unpack.mounted(snapshotter.prepare(name, chain).mounts, helper.directory / "merged") as at:
            views.append(unpack.look(at))
        snapshotter.remove(name)
    overlay, native = views
    for view in views:
        for entry in view.values():
            entry.pop("links", None)  # overlayfs counts the links of the lower inode
    # The copy has its root from the topmost layer, the overlay from its own upper directory, with other times.
    overlay["."]["mtime"] = native["."]["mtime"]
    assert overlay == native
    return overlay


def test_files_keep_everything(helper: Helper) -> None:
    """Data, mode with set-id bits, numeric owner, times, attributes and capabilities arrive."""
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".decode("latin-1")
    layer = Layer().dir("d", 0o2750, uid=1, gid=2)
    layer.file("d/set", b"x" * 5000, 0o6755, uid=70_000, gid=3_000_000)
    layer.file("d/capable", "y", 0o755, uid=1000, pax_headers={"SCHILY.xattr.security.capability": capability})
    layer.file("d/named", "z", 0o600, pax_headers={"SCHILY.xattr.user.note": "hällo"})
    layer.add("d/fifo", tarfile.FIFOTYPE, mode=0o4611, uid=9)
    layer.add("d/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)
    layer.add("d/disk", tarfile.BLKTYPE, mode=0o660, gid=6, devmajor=259, devminor=70_000)
    layer.add("d/link", tarfile.SYMTYPE, linkname="/nowhere", uid=5)

    name, counts = helper.unpack(layer.tar())
    found = unpack.look(helper.tree(name))

    assert (counts.entries, counts.inodes, counts.implicit, counts.opaque) == (8, 9, 1, 0)
    assert counts.bytes == 4096 * 2 + 8192 + 4096 * 2
    assert [found["d"][key] for key in ("mode", "owner", "mtime")] == [0o2750, (1, 2), 1_700_000_000 * 10**9]
    assert [found["d/set"][key] for key in ("mode", "owner")] == [0o6755, (70_000, 3_000_000)]
    assert found["d/capable"]["xattrs"] == {"security.capability": capability.encode("latin-1")}
    assert found["d/named"]["xattrs"] == {"user.note": "hällo".encode()}
    assert [found["d/fifo"][key] for key in ("mode", "owner")] == [0o4611, (9, 0)]
    assert found["d/null"]["device"] == os.makedev(1, 3)
    assert found["d/disk"]["device"] == os.makedev(259, 70_000)
    assert [found["d/link"][key] for key in ("target", "owner", "mtime")] == ["/nowhere", (5, 0), 1_700_000_000 * 10**9]


def test_attributes_that_steer_the_node_are_left_out(helper: Helper) -> None:
    """A layer sets neither overlayfs's attributes nor labels of a security module."""
    names = ("trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.opaque", "security.ima", "security.x")
    headers = {f"SCHILY.xattr.{name}": "y" for name in names}
    layer = Layer().dir("d", pax_headers=headers).file("d/f", "x", pax_headers={**headers, "SCHILY.xattr.user.a": "b"})

    name, counts = helper.unpack(layer.tar())

    assert counts.ignored_xattrs == 10
    assert os.listxattr(helper.tree(name) / "d") == []
    assert os.listxattr(helper.tree(name) / "d/f") == ["user.a"]


def test_whiteouts_hide_files_and_directories(helper: Helper) -> None:
    """A whiteout hides a name of the layers below, and what was hidden can be hidden but not seen again."""
    base = Layer().dir("a").file("a/one", "1").file("a/two", "2").dir("b").file("b/three", "3")
    upper = Layer().file("a/.wh.one").file(".wh.b").file(".wh.never")

    assert set(merged(helper, base, upper)) == {".", "a", "a/two"}
    assert set(merged(helper, base, upper, Layer().dir("b"))) == {".", "a", "a/two", "b"}


@pytest.mark.parametrize("first", [True, False])
def test_opaque_directories_hide_lower_layers_only(helper: Helper, first: bool) -> None:
    """An opaque marker hides what lies below, not its own layer's files, whether it stands before or after them."""
    base = Layer().dir("d").file("d/old", "1").dir("d/sub").file("d/sub/old", "2")
    marker = Layer().file("d/.wh..wh..opq").entries
    files = Layer().file("d/new", "3").dir("d/sub").file("d/sub/new", "4").entries
    upper = Layer().dir("d")
    upper.entries += marker + files if first else files + marker

    assert set(merged(helper, base, upper)) == {".", "d", "d/new", "d/sub", "d/sub/new"}


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_beside_a_directory_of_that_name_makes_it_opaque(helper: Helper, first: bool) -> None:
    """Removing a directory and making it anew in one layer hides the old one's files, in whichever order it is told."""
    base = Layer().dir("d").file("d/old", "1").file("f", "1")
    whiteouts = Layer().file(".wh.d").file(".wh.f").entries
    files = Layer().dir("d", 0o700).file("d/new", "2").file("f", "2").entries
    upper = Layer()
    upper.entries += whiteouts + files if first else files + whiteouts

    found = merged(helper, base, upper)

    assert set(found) == {".", "d", "d/new", "f"}
    assert found["d"]["mode"] == 0o700
    assert found["f"]["data"] == unpack.look(helper.tree(helper.layers(Layer().file("f", "2").tar())[0]))["f"]["data"]


def test_a_whiteout_of_a_directory_that_is_then_implied(helper: Helper) -> None:
    """A file below a name hidden in the same layer brings the directory back, without its old files."""
    base = Layer().dir("d").file("d/old", "1")

    assert set(merged(helper, base, Layer().file(".wh.d").file("d/new", "2"))) == {".", "d", "d/new"}


def test_an_opaque_root_hides_everything_below(helper: Helper) -> None:
    """Its layer's own files are all that is left, and the root's times are those that the layer gives it."""
    base = Layer().dir("d").file("d/old", "1").dir("gone").file("f", "1")
    upper = Layer().dir("./", 0o711).file(".wh..wh..opq").dir("d").file("d/new", "2")

    found = merged(helper, base, upper, Layer().file("above", "3"))

    assert set(found) == {".", "above", "d", "d/new"}
    assert (found["."]["mode"], found["."]["mtime"]) == (0o711, 1_700_000_000 * 10**9)


def test_aufs_files_are_passed_over(helper: Helper) -> None:
    """What aufs left in old images appears nowhere."""
    layer = Layer().file(".wh..wh.aufs").dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x").file("f", "x")

    assert set(merged(helper, layer)) == {".", "f"}


def test_implied_directories_keep_the_metadata_they_have_below(helper: Helper) -> None:
    """A file whose parents the layer leaves out changes neither their mode nor owner nor attributes nor times."""
    base = Layer().dir("etc", 0o755).dir("etc/priv", 0o700, uid=7, gid=8, pax_headers={"SCHILY.xattr.user.a": "b"})
    base.dir("etc/priv/deep", 0o1770, uid=9)
    between = Layer().file("etc/other", "x")
    upper = Layer().file("etc/priv/deep/key", "x").file("etc/priv/fresh/f", "x")

    found = merged(helper, base, between, upper)
    priv, deep, fresh = (found[f"etc/priv{rest}"] for rest in ("", "/deep", "/fresh"))

    assert (priv["mode"], priv["owner"], priv["xattrs"]) == (0o700, (7, 8), {"user.a": b"b"})
    assert (deep["mode"], deep["owner"]) == (0o1770, (9, 0))
    assert deep["mtime"] == priv["mtime"] == 1_700_000_000 * 10**9
    assert (fresh["mode"], fresh["owner"]) == (0o755, (0, 0))


def test_the_nearest_layer_that_is_not_hidden_counts(helper: Helper) -> None:
    """Metadata comes from the topmost layer that has the directory, and none from beneath a whiteout."""
    low = Layer().dir("a", 0o700).dir("a/b", 0o711).dir("c", 0o700).dir("c/d", 0o711)
    high = Layer().dir("a", 0o750).file(".wh.c").dir("c", 0o750)
    upper = Layer().file("a/b/f", "x").file("c/d/f", "x")

    found = merged(helper, low, high, upper)

    assert [found[name]["mode"] for name in ("a", "a/b", "c", "c/d")] == [0o750, 0o711, 0o750, 0o755]


def test_the_root_directory_is_described_by_whoever_describes_it(helper: Helper) -> None:
    """The mode and owner of the image's root survive layers that do not mention it."""
    found = merged(helper, Layer().dir("./", 0o711, uid=4, gid=5), Layer().file("f", "x"))

    assert (found["."]["mode"], found["."]["owner"]) == (0o711, (4, 5))


def test_the_last_of_several_entries_wins_across_types(helper: Helper) -> None:
    """A path that occurs again is replaced, whatever it was, and a directory that occurs again keeps its files."""
    layer = Layer().file("a", "1").file("a", "22", 0o600).dir("b").file("b/x", "1").file("b", "now a file")
    layer.symlink("c", "elsewhere").dir("c").file("c/f", "x").file("d", "x").symlink("d", "a")
    layer.dir("e", 0o700).file("e/kept", "x").dir("e", 0o711).dir("f").symlink("f", "e").file("g", "x").dir("g")
    layer.file("h", "x").hardlink("h", "a").add("i", tarfile.FIFOTYPE).file("i", "x").symlink("j", "e").file("j/k", "x")

    found = merged(helper, layer)

    kinds = {name: stat.filemode(entry["type"])[0] for name, entry in found.items()}
    assert kinds == {
        ".": "d", "a": "-", "b": "-", "c": "d", "c/f": "-", "d": "l", "e": "d", "e/kept": "-", "e/k": "-",
        "f": "l", "g": "d", "h": "-", "i": "-", "j": "l",
    }  # fmt: skip
    assert (found["a"]["mode"], found["e"]["mode"]) == (0o600, 0o711)
    assert found["h"]["data"] == found["a"]["data"]


def test_hard_links_are_one_file(helper: Helper) -> None:
    """Hard links share an inode, also across directories, by an absolute name, and to a symbolic link."""
    layer = Layer().file("usr/bin/a", "x", 0o4755).hardlink("usr/sbin/b", "usr/bin/a").hardlink("c", "/usr/bin/a")
    layer.hardlink("c", "c").symlink("s", "usr").hardlink("t", "s").file("t/bin/via", "x")

    name, counts = helper.unpack(layer.tar())
    found = unpack.look(helper.tree(name))

    assert found["usr/bin/a"]["links"] == found["usr/sbin/b"]["links"] == found["c"]["links"] == ("c", 3)
    assert found["usr/sbin/b"]["mode"] == 0o4755
    assert found["s"]["links"] == found["t"]["links"]
    assert "usr/bin/via" in found
    assert counts.inodes == 1 + 3 + 1 + 1 + 1


def test_a_retry_replaces_what_a_failure_left(helper: Helper) -> None:
    """After a cut stream the same name can be unpacked again, and nothing of the first attempt is left."""
    good = Layer().file("good", "x").tar()
    bad = Layer().file("bad", "x" * 100_000).tar()[:50_000]
    name = str(next(helper.names))

    with pytest.raises(Exception, match="cut"):
        helper.unpack(bad, name)
    with pytest.raises(NotFound):
        helper.client.settle([name])
    assert (name, False) in helper.client.list()
    helper.unpack(good, name)

    assert set(unpack.look(helper.tree(name))) == {".", "good"}
    with pytest.raises(FailedPrecondition):
        helper.client.prepare(str(next(helper.names)), [name])
    helper.client.settle([name])
    assert (name, True) in helper.client.list()
    with pytest.raises(AlreadyExists):
        helper.unpack(good, name)


def test_removed_snapshots_vanish_at_once_and_are_emptied_in_the_background(helper: Helper) -> None:
    """A removed snapshot is gone when remove returns; soon its files are, however deep a container nested them."""
    [name] = helper.layers(Layer().file("a/b/c", "x").tar())
    container = str(next(helper.names))
    helper.client.prepare(container, [name])
    here = os.open(helper.tree(container), os.O_RDONLY)
    for _ in range(3000):  # deeper than any path reaches
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    usage = helper.client.usages([container])[container]
    assert usage.inodes > 900

    for _ in range(2):
        helper.client.remove(container)

    assert not (helper.snapshots / container).exists()
    assert helper.client.usages([container]) == {}
    helper.wait_for_trash()


def test_usage_counts_blocks_and_hard_links_once(helper: Helper) -> None:
    """What `usage` counts is what du counts, and what unpacking said beforehand."""
    layer = Layer().dir("d")
    for number in range(50):
        layer.file(f"d/{number}", b"x" * number * 700)
    layer.hardlink("d/again", "d/49")
    name, counts = helper.unpack(layer.tar())
    helper.client.settle([name])
    helper.client.sync()

    usage = helper.client.usages([name])[name]
    du = subprocess.run(["du", "-s", "--block-size=1", helper.tree(name)], capture_output=True, check=True, timeout=60)

    assert usage.bytes == int(du.stdout.split()[0]) == counts.bytes
    assert usage.inodes == counts.inodes == 1 + 1 + 50


def test_127_layers_can_be_mounted(helper: Helper) -> None:
    """The largest image there may be gives a mount whose options fit once the common directory is left out."""
    chain = helper.layers(*(Layer().file(f"f{number}", str(number)).tar() for number in range(127)))
    snapshotter = open_snapshotter("overlayfs", helper.snapshots.parent, helper.client)
    name = str(next(helper.names))

    with unpack.mounted(snapshotter.prepare(name, chain).mounts, helper.directory / "many") as at:
        assert len(os.listdir(at)) == 127
        (at / "f0").write_text("changed")
        assert (helper.tree(name) / "f0").read_text() == "changed"


def test_views_show_the_layers(helper: Helper) -> None:
    """One layer is shown as it is, several merged, none as an empty directory."""
    chain = helper.layers(Layer().file("a", "1").tar(), Layer().file("b", "2").tar())
    snapshotter = open_snapshotter("overlayfs", helper.snapshots.parent, helper.client)

    for layers, expected in ((chain, ["a", "b"]), (chain[:1], ["a"]), ([], [])):
        plan = snapshotter.view(str(next(helper.names)), layers)
        with unpack.mounted(plan.mounts, helper.directory / "view") as at:
            assert sorted(os.listdir(at)) == expected
        assert plan.upper_dir == ""


def awkward_tree(root: Path) -> None:
    """Make a directory with parts of this system and everything that is hard to archive."""
    shutil.copytree("/etc", root / "etc", symlinks=True, ignore=lambda path, names: {"mtab"})
    (root / "usr/bin").mkdir(parents=True)
    for program in ("mount", "su", "passwd", "tar"):
        subprocess.run(["cp", "-a", f"/usr/bin/{program}", root / "usr/bin"], check=True, timeout=60)
    odd = root / "odd"
    odd.mkdir(0o2770)
    for name in (b"new\nline", b"sp ace", b"latin\xe9", b"x" * 255, "üñï".encode(), b"-dash", b"back\\slash"):
        (odd / os.fsdecode(name)).write_bytes(name)
    deep = odd / "/".join("d" * 60 for _ in range(12))
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    os.symlink("/".join(["t" * 50] * 6), odd / "long-link")
    os.link(deep / "file", odd / "hard")
    os.mkfifo(odd / "fifo", 0o640)
    os.mknod(odd / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (odd / "program").write_bytes(b"x" * 1_000_000)
    subprocess.run(["setcap", "cap_net_raw+ep", odd / "program"], check=True, timeout=30)
    os.setxattr(odd / "sp ace", "user.note", b"\x00binary\xff")
    os.setxattr(odd, "user.dir", b"1")
    os.chown(odd / "hard", 12345, 4_000_000_000)
    os.utime(odd / "-dash", ns=(1, 123_456_789))
    os.chown(odd, 3, 4)
    os.chmod(odd, 0o2770)


def test_the_result_is_that_of_gnu_tar_and_umoci(helper: Helper, tmp_path: Path) -> None:
    """Mode, owner, time, attributes, data, devices and hard links equal what the established tools unpack."""
    source, theirs = tmp_path / "source", tmp_path / "theirs"
    source.mkdir()
    theirs.mkdir()
    awkward_tree(source)
    archive = tmp_path / "layer.tar"
    take = ["--xattrs", "--xattrs-include=*"]
    subprocess.run(["tar", "-C", source, "--format=pax", *take, "-cf", archive, "."], check=True, timeout=60)
    subprocess.run(["tar", "-C", theirs, "-p", "--same-owner", *take, "-xf", archive], check=True, timeout=60)
    [name] = helper.layers(archive.read_bytes())

    ours = unpack.look(helper.tree(name))

    assert len(ours) > 100
    assert ours == unpack.look(theirs) == unpack.look(source)
    if shutil.which("umoci"):
        assert ours == unpack.look(umoci(tmp_path, archive))


def umoci(scratch: Path, archive: Path) -> Path:
    """Unpack a layer with umoci and return the root file system."""
    image = f"{scratch}/oci:x"
    for command in (
        ["init", "--layout", f"{scratch}/oci"],
        ["new", "--image", image],
        ["raw", "add-layer", "--image", image, str(archive)],
        ["unpack", "--image", image, f"{scratch}/bundle"],
    ):
        subprocess.run(["umoci", *command], check=True, capture_output=True, timeout=60)
    return scratch / "bundle/rootfs"


def test_native_copies_share_hard_links(helper: Helper) -> None:
    """Hard links of a layer are hard links in the copy, with data, owner and attributes."""
    base = Layer().file("d/a", "x", 0o4755, uid=5, pax_headers={"SCHILY.xattr.user.a": "b"}).hardlink("d/b", "d/a")
    chain = helper.layers(base.tar(), Layer().file("d/.wh.a").tar())
    name = str(next(helper.names))

    open_snapshotter("native", helper.snapshots.parent, helper.client).prepare(name, helper.layers(base.tar()))
    found = unpack.look(helper.tree(name))
    assert found["d/a"]["links"] == found["d/b"]["links"] == ("d/a", 2)
    assert (found["d/a"]["mode"], found["d/a"]["owner"], found["d/a"]["xattrs"]) == (0o4755, (5, 0), {"user.a": b"b"})

    second = str(next(helper.names))
    helper.client.copy(second, chain)
    assert set(unpack.look(helper.tree(second))) == {".", "d", "d/b"}
    with pytest.raises(InvalidArgument):
        helper.client.copy("0", chain)
