"""What a proxy snapshotter is told of a layer, and which directories it may name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead import exports
from bulkhead.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from image_svc.proxied import labels
from image_svc.registry.repository import Descriptor
from image_svc.unpack.foreign import Foreign
from support.images import digest

ROOT = Path("/var/lib/stargz/snapshotter")


def made(annotations: dict[str, str], count: int = 1) -> list[dict[str, str]]:
    """Return the labels of some layers with those annotations."""
    ids = [digest(str(number).encode()) for number in range(count)]
    layers = [Descriptor(each, 1, "", annotations) for each in ids]
    return list(labels.of_layers("q.io/x:1", ids[0], layers, ids, ids, annotations=True))


def test_annotations_of_the_image() -> None:
    """Those for snapshotters go along, but for the two by which an image would choose the owners of its files."""
    toc = "containerd.io/snapshot/stargz/toc.digest"
    (found,) = made(
        {
            toc: "sha256:aa",
            "containerd.io/snapshot/uidmapping": "0:1:1",
            "containerd.io/snapshot/gidmapping": "0:1:1",
            "containerd.io/snapshot.ref": "sha256:evil",
            "containerd.io/snapshot/diff-id": "sha256:evil",
            "containerd.io/snapshot/cri.image-ref": "evil",
            "org.opencontainers.image.enc.keys.jwe": "x",
            labels.PREFIX + "lone\ud800": "evil",
            labels.PREFIX + "line": "evil\n",
        }
    )

    assert found[toc] == "sha256:aa"
    assert not any("mapping" in key for key in found)
    assert "evil" not in "".join(found.values())
    assert not any(key.startswith("org.") for key in found)


def test_many_layers() -> None:
    """The list of an image's layers holds as many digests as a label has room for, the layer's own first."""
    found = made({}, count=100)

    for number, each in enumerate(found):
        listed = each[labels.LAYERS].split(",")
        assert listed[0] == each[labels.LAYER]
        assert len(listed) == min(100 - number, (4096 - len(labels.LAYERS) + 1) // 72)


@given(st.dictionaries(st.text(max_size=60).map(labels.PREFIX.__add__) | st.text(), st.text() | st.just("x" * 5000)))
def test_every_label_fits(annotations: dict[str, str]) -> None:
    """Whatever an image says, no label is longer than a snapshotter takes, and none is of another kind."""
    (found,) = made(annotations)

    for key, value in found.items():
        assert len(key.encode()) + len(value.encode()) <= labels.LIMIT
        assert key == labels.TARGET or key.startswith(labels.PREFIX)


@given(
    st.lists(st.sampled_from(["", ".", "..", "fs", "work", "snapshots", "1", "a,b", "a:b", "x\n", "\\"]), max_size=6)
)
def test_paths_below_a_root(parts: list[str]) -> None:
    """What passes is a plain path below the root, and not within a snapshot's tree."""
    path = "/".join([str(ROOT), *parts])
    plain = bool(parts) and all(part in ("fs", "work", "snapshots", "1") for part in parts) and "fs" not in parts[:-1]
    try:
        relative = exports.below(ROOT, path)
    except PermissionDenied:
        assert not plain
    else:
        assert plain
        assert ROOT / relative == Path(path)


@given(st.text())
def test_any_text_as_a_path(path: str) -> None:
    """Nothing but what begins with the root passes."""
    with pytest.raises(PermissionDenied):
        exports.below(ROOT, path)


def test_places(tmp_path: Path) -> None:
    """The helper opens an empty directory of a snapshotter that the configuration has, and no other."""
    for name in ("1/fs", "2/fs/full", "3"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "3/fs").symlink_to("../1/fs")
    foreign = Foreign({"fake": tmp_path})

    foreign.place("fake", f"{tmp_path}/1/fs", [f"{tmp_path}/2/fs"]).close()

    for snapshotter, path, lowers, error in (
        ("other", f"{tmp_path}/1/fs", [], PermissionDenied),
        (None, f"{tmp_path}/1/fs", [], PermissionDenied),
        ("fake", "/etc", [], PermissionDenied),
        ("fake", f"{tmp_path}/1/fs/../../2/fs", [], PermissionDenied),
        ("fake", f"{tmp_path}/2/fs/full", [], PermissionDenied),
        ("fake", f"{tmp_path}/1/fs", ["/etc"], PermissionDenied),
        ("fake", f"{tmp_path}/1/fs", "/etc", InvalidArgument),
        ("fake", f"{tmp_path}/2/fs", [], FailedPrecondition),
        ("fake", f"{tmp_path}/3/fs", [], FailedPrecondition),
        ("fake", f"{tmp_path}/7/fs", [], FailedPrecondition),
        ("fake", 7, [], PermissionDenied),
    ):
        with pytest.raises(error):
            foreign.place(snapshotter, path, lowers)
