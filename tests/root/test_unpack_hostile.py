"""A hostile layer is refused with its entry's name, or harmless, and never hangs or outlives its limits."""

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkhead.errors import BulkheadError, DataLoss, DeadlineExceeded, InvalidArgument, ResourceExhausted
from image_svc.unpack.protocol import Limits
from support import unpack
from support.images import Layer
from support.unpack import Helper

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    """Run one helper, and see that nothing outside its layers' trees changed."""
    with unpack.running() as running:
        yield running
        assert sorted(os.listdir(running.directory)) == ["config.toml", "root", "state"]
        for name in os.listdir(running.snapshots):
            if name != "trash":
                kept = {"fs", "work", "implicit", "opaque", "pending", "unpacking"}
                assert set(os.listdir(running.snapshots / name)) <= kept


REFUSED: dict[str, tuple[Layer, str]] = {
    "climbing name": (Layer().file("../evil", "x"), r"'\.\./evil'.*climbs"),
    "climbing within": (Layer().dir("a").file("a/../../evil", "x"), r"climbs"),
    "climbing at the end": (Layer().dir("a/.."), r"climbs"),
    "absolute and climbing": (Layer().file("/../evil", "x"), r"climbs"),
    "absolute link as parent": (Layer().symlink("a", "/tmp").file("a/evil", "x"), r"'a/evil'.*symbolic link"),
    "climbing link as parent": (Layer().symlink("a", "../../..").file("a/tmp/../evil", "x"), r"climbs"),
    "link to nothing as parent": (Layer().symlink("a", "../../../etc").file("a/evil", "x"), r"symbolic link"),
    "link chain as parent": (Layer().symlink("a", "b").symlink("b", "/etc").file("a/evil", "x"), r"symbolic link"),
    "loop of links as parent": (Layer().symlink("a", "b").symlink("b", "a").file("a/evil", "x"), r"symbolic links"),
    "proc link as parent": (Layer().symlink("a", "/proc/self/root").file("a/evil", "x"), r"symbolic link"),
    "hard-linked link as parent": (
        Layer().symlink("a", "/tmp").hardlink("b", "a").file("b/evil", "x"), r"'b/evil'.*symbolic link",
    ),
    "hard link outside": (Layer().hardlink("a", "/etc/shadow"), r"'a'.*'/etc/shadow', which is not in this layer"),
    "hard link climbing": (Layer().hardlink("a", "../../../etc/shadow"), r"climbs"),
    "hard link through a link": (Layer().symlink("e", "/etc").hardlink("a", "e/shadow"), r"symbolic link"),
    "hard link to a later file": (Layer().hardlink("a", "b").file("b", "x"), r"not in this layer"),
    "hard link to a directory": (Layer().dir("d").hardlink("a", "d"), r"'a'"),
    "hard link to nothing": (Layer().hardlink("a", ""), r"'a'"),
    "hard link in place of its target": (Layer().file("d/x", "x").hardlink("d", "d/x"), r"not in this layer"),
    "file as parent": (Layer().file("a", "x").file("a/b", "x"), r"'a/b'.*not a directory"),
    "whiteout of nothing": (Layer().dir("a").file("a/.wh.", ""), r"names no file"),
    "whiteout of the directory": (Layer().dir("a").file("a/.wh..", ""), r"names no file"),
    "whiteout of its parent": (Layer().dir("a").file("a/.wh...", ""), r"names no file"),
    "whiteout outside": (Layer().file("../.wh.etc", ""), r"climbs"),
    "opaque outside": (Layer().file("../.wh..wh..opq", ""), r"climbs"),
    "root that is a file": (Layer().file("./", "x"), r"not a directory"),
    "root that is a link": (Layer().symlink(".", "/tmp"), r"not a directory"),
    "link to nothing": (Layer().symlink("a", ""), r"symbolic link to nothing"),
    "link too long": (Layer().symlink("a", "x/" * 2100), r"'a'"),
    "name too long": (Layer().file("x" * 256, "x"), r"File name too long"),
    "GNU sparse file": (Layer().add("a", b"S", b"xyz"), r"map of holes"),
    "unknown type": (Layer().add("a", b"Z"), r"type 'Z'"),
    "impossible device": (Layer().add("a", tarfile.CHRTYPE, devmajor=5000, devminor=1), r"device number 5000:1"),
    "owner -1": (Layer().file("a", "x", uid=2**32 - 1), r"owner 4294967295"),
    "huge owner": (Layer().file("a", "x", uid=2**40), r"owner"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_leads_out_or_makes_no_sense_is_refused(helper: Helper, case: str) -> None:
    """The layer fails with InvalidArgument, whose message names the entry and what is wrong with it."""
    layer, message = REFUSED[case]

    with pytest.raises(InvalidArgument, match=message):
        helper.unpack(layer.tar())


def test_absolute_names_and_links_mean_the_layer_itself(helper: Helper) -> None:
    """A leading slash is the layer's root, as with every other runtime; links within it are followed there only."""
    layer = Layer().file("/etc/passwd", "fake").symlink("e", "/etc").file("e/shadow", "fake")
    layer.symlink("up", "../../../../etc").file("up/group", "fake").hardlink("/h", "/etc/passwd")

    name, _ = helper.unpack(layer.tar())

    assert sorted(os.listdir(helper.tree(name) / "etc")) == ["group", "passwd", "shadow"]


def test_links_in_the_layer_stay_links(helper: Helper) -> None:
    """A file in place of a link replaces the link and never writes through it."""
    outside = helper.directory / "state/outside"
    outside.write_text("untouched")
    layer = Layer().symlink("a", str(outside)).file("a", "mine").symlink("b", "c").dir("c").file("b", "x")
    layer.symlink("d", "/dev/null").add("d", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)

    name, _ = helper.unpack(layer.tar())

    assert (helper.tree(name) / "a").read_text() == "mine"
    assert outside.read_text() == "untouched"
    assert os.listdir(helper.tree(name) / "c") == []
    outside.unlink()


@pytest.mark.parametrize(
    ("limits", "layer", "message"),
    [
        (Limits(entries=10), [f"f{number}" for number in range(11)], "more than 10 entries"),
        (Limits(entries=10), ["/".join("abcdefghijkl")], "more than 10 entries"),
        (Limits(bytes=20_000), ["big"], "larger than 20000 bytes"),
        (Limits(path_depth=8), ["/".join("abcdefghijkl")], "deeper than 8"),
        (Limits(path_length=100), ["x" * 60 + "/" + "y" * 60], "121 bytes long, at most 100"),
        (Limits(xattrs=2), ["marked"], "3 extended attributes, at most 2"),
        (Limits(xattr_bytes=50), ["marked", "marked"], "more than 50 bytes of extended attributes"),
    ],
)
def test_limits_hold_and_are_named(helper: Helper, limits: Limits, layer: list[str], message: str) -> None:
    """Entries (implied directories included), bytes, depth, length and extended attributes are bounded."""
    made = Layer()
    for name in layer:
        marks = {f"SCHILY.xattr.user.{number}": "12345" for number in range(3)} if name == "marked" else {}
        made.file(name, b"x" * 30_000 if name == "big" else "x", pax_headers=marks)

    with pytest.raises(ResourceExhausted, match=message):
        helper.unpack(made.tar(), limits=limits)


def test_time_is_bounded(helper: Helper) -> None:
    """A stream that stalls is ended by the limit, and its worker with it."""
    here, there = os.pipe()
    began = time.monotonic()
    try:
        with pytest.raises(DeadlineExceeded, match="unpack of snapshot"):
            helper.client.unpack(str(next(helper.names)), here, Limits(seconds=0.5))
    finally:
        os.close(here)
        os.close(there)
    assert time.monotonic() - began < 40
    assert all(Path(f"/proc/{pid}").exists() for pid in helper.children())


@pytest.mark.parametrize("size", ["7777777777777", "0777777777777777777777", "-1"])
def test_sizes_that_are_lies_end_with_the_stream(helper: Helper, size: str) -> None:
    """An entry that claims terabytes, or less than nothing, fails when the stream ends and takes no disk space."""
    info = tarfile.TarInfo("huge")
    info.size = int(size, 8) if size.startswith("0") or size[0] != "-" else -1
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))

    with pytest.raises((DataLoss, InvalidArgument, ResourceExhausted), match=r"cut|size|larger"):
        helper.unpack(bytes(header) + b"x" * 5000)


def nested(levels: int) -> bytes:
    """Return every prefix of one deep path, deepest first, each as a file beside it."""
    layer = Layer()
    for level in range(levels, 0, -1):
        layer.file("/".join(["d"] * level) + "/f", "x")
    return layer.tar()


def spread() -> bytes:
    """Return many entries in directories of their own, at the depth allowed."""
    layer = Layer()
    for number in range(2000):
        layer.file("/".join(["deep"] * 200) + f"/{number}/f", "x")
    return layer.tar()


def flapping() -> bytes:
    """Return a wide tree, then one name that is by turns a directory with a file and a file."""
    layer = Layer()
    for number in range(5000):
        layer.dir(f"wide/{number}")
    for number in range(5000):
        layer.file("a/b/c", "x") if number % 2 else layer.file("a", "x")
        if number % 2:
            layer.dir("a")
    return layer.tar()


def winding() -> bytes:
    """Return links that go through one another many times, and files reached by them."""
    layer = Layer().dir("d")
    layer.symlink("l0", "d")
    for number in range(1, 40):
        layer.symlink(f"l{number}", "/".join([f"l{number - 1}", ".."] * 100 + ["d"]))
    for number in range(2000):
        layer.file(f"l1/{number}", "x")
    return layer.tar()


def described(*counts: int) -> bytes:
    """Return entries with so many PAX records each, extended attributes that no layer may set."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, count in enumerate(counts):
            info = tarfile.TarInfo(f"f{number}")
            info.pax_headers = {f"SCHILY.xattr.trusted.{number}": "x" * 20 for number in range(count)}
            archive.addfile(info)
    return buffer.getvalue()


def headers() -> bytes:
    """Return many entries with as many attributes as one may have."""
    return described(*[Limits().xattrs] * 500)


def overlong() -> bytes:
    """Return one entry whose attributes fill most of a megabyte, which is all that one header may have."""
    return described(20_000)


@pytest.mark.parametrize("make", [nested, spread, flapping, winding, headers, overlong])
def test_crafted_layers_take_linear_time(helper: Helper, make: Callable[..., bytes]) -> None:
    """Inputs made to be slow (GHSA-rp3h-jf77-q9p4 and its like) are through, or refused, in seconds."""
    data = make(250) if make is nested else make()
    began = time.monotonic()

    try:
        helper.unpack(data)
    except (InvalidArgument, ResourceExhausted) as error:
        assert make in (winding, flapping, overlong), error
    assert time.monotonic() - began < 10


def test_many_wide_directories_are_replaced_in_linear_time(helper: Helper) -> None:
    """Replacing one directory after the other costs each only its own size."""

    def seconds(count: int) -> float:
        layer = Layer()
        for number in range(count):
            layer.dir(f"d{number}").file(f"d{number}/f", "x")
        for number in range(count):
            layer.file(f"d{number}", "x")
        data = layer.tar()
        began = time.monotonic()
        helper.unpack(data)
        return time.monotonic() - began

    # A moment in which the machine does something else passes; what is not linear stays.
    for _ in range(3):
        few, many = seconds(500), seconds(4000)
        if many < 8 * few * 4 + 1:
            return
    pytest.fail(f"{few:.2f} s for 500 directories and {many:.2f} s for eight times as many")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzzed_layers_never_escape(helper: Helper, data: st.DataObject) -> None:
    """Any mixture of entries over few names is unpacked or refused with an error of ours, inside its own directory."""
    parts = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq"]), min_size=1, max_size=4)
    names = parts.map("/".join)
    kinds = st.sampled_from(
        [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"Z"]
    )
    layer = Layer()
    for kind, name, link in data.draw(st.lists(st.tuples(kinds, names, names), max_size=12)):
        content = b"x" if kind == tarfile.REGTYPE else b""
        layer.add(name or "x", kind, content, linkname=link)
    raw = bytearray(layer.tar())
    for position in data.draw(st.lists(st.integers(0, max(len(raw) - 1, 0)), max_size=2)):
        raw[position] ^= data.draw(st.integers(0, 255))

    before = sorted(os.listdir(helper.directory))
    name = ""
    try:
        name, _ = helper.unpack(bytes(raw))
    except BulkheadError as error:
        assert error.name in ("INVALID_ARGUMENT", "DATA_LOSS", "RESOURCE_EXHAUSTED"), error
    else:
        unpack.look(helper.tree(name))
    assert sorted(os.listdir(helper.directory)) == before


def test_a_full_disk_is_said_so() -> None:
    """A layer that does not fit is ResourceExhausted naming the entry; removing it makes room again."""
    with tempfile.TemporaryDirectory(prefix="bhfull") as scratch:
        image, place = Path(scratch, "disk"), Path(scratch, "at")
        place.mkdir()
        with open(image, "wb") as file:
            file.truncate(16 << 20)
        unpack.run("mkfs.ext4", "-q", str(image))
        unpack.run("mount", "-o", "loop", str(image), str(place))
        try:
            with unpack.running(place) as helper:
                with pytest.raises(ResourceExhausted, match=r"'big'.*No space left"):
                    helper.unpack(Layer().file("big", bytes(32 << 20)).tar(), "1")
                helper.client.remove("1")
                helper.wait_for_trash()
                helper.unpack(Layer().file("small", bytes(1 << 20)).tar(), "2")
        finally:
            unpack.unmount(place)
