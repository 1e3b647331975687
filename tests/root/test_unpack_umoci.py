"""What GNU tar can write unpacks as umoci unpacks it: random trees in layers, ours mounted, umoci's beside it."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from image_svc.snapshots.overlayfs import Overlayfs
from support import unpack
from support.images import MEDIA, compress
from support.unpack import Helper

pytestmark = pytest.mark.root

#: BULKHEAD_EXAMPLES=1000 tries so many stacks, others each time; without it a few, in every run the same.
EXAMPLES = int(os.environ.get("BULKHEAD_EXAMPLES", "0"))
#: How GNU tar may write an archive; only PAX has room for extended attributes.
STYLES = {
    "gnu": ["--format=gnu"],
    "oldgnu": ["--format=oldgnu"],
    "pax": ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse-version=1.0"],
    "pax, sparse 0.1": ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse-version=0.1"],
    "pax, sparse 0.0": ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse-version=0.0"],
}
#: Few names, so that layers meet each other's files; one of them takes an extension header.
NAMES = ["a", "b", "ä ö", "long" * 40]
FOLDERS = [".", "d", "d/e", "f"]


@dataclass(frozen=True)
class Node:
    """One file of a layer."""

    folder: str
    name: str
    kind: str
    mode: int
    owner: tuple[int, int]
    mtime: int
    data: bytes
    hole: int
    xattr: bytes


NODES = st.builds(
    Node,
    folder=st.sampled_from(FOLDERS),
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(
        ["file", "file", "sparse", "symlink", "hardlink", "fifo", "char", "block", "dir", "whiteout", "opaque"]
    ),
    mode=st.sampled_from([0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o600, 0o000]),
    owner=st.tuples(st.sampled_from([0, 33, 100_000]), st.sampled_from([0, 50, 4_000_000])),
    mtime=st.integers(1, 2_000_000_000).map(lambda seconds: seconds * 1_000_000_000),
    data=st.binary(max_size=3000),
    hole=st.integers(1, 40),
    xattr=st.binary(max_size=40),
)
LAYERS = st.lists(st.lists(NODES, max_size=10), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    """Run one helper for all examples."""
    with unpack.running() as running:
        yield running


def build(root: Path, nodes: list[Node], below: set[str]) -> None:
    """Make the files of a layer; what cannot be made where something else stands is left out.

    Whiteouts go into directories that the layers below have: overlayfs lists those in others, whoever made them.
    """
    folders = {node.folder for node in nodes} | {"."}
    for folder in sorted(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
    closed = {node.folder for node in nodes if node.kind == "opaque" and node.folder in below}
    for folder in closed:
        below -= {each for each in below if under(each, folder)}
    for node in nodes:
        if node.kind == "opaque" and node.folder not in closed:
            continue
        if node.kind == "whiteout" and node.folder not in below:
            continue
        with contextlib.suppress(FileExistsError, FileNotFoundError, IsADirectoryError):
            make(root, node)
    below |= folders | {str(Path(folder).parent) for folder in folders}
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            os.utime(path, ns=(1_500_000_000_000_000_000,) * 2)
    os.utime(root, ns=(1_400_000_000_000_000_000,) * 2)


def under(folder: str, above: str) -> bool:
    """Tell whether a folder is another one or lies in it."""
    return above == "." or folder == above or folder.startswith(f"{above}/")


def make(root: Path, node: Node) -> None:
    """Make one file with all its metadata."""
    path = root / node.folder / node.name
    if node.kind == "opaque":
        (path.parent / ".wh..wh..opq").touch(exist_ok=True)
        return
    if node.kind == "whiteout":
        if not path.exists():
            (path.parent / f".wh.{node.name}").touch(exist_ok=True)
        return
    if (path.parent / f".wh.{node.name}").exists() or os.path.lexists(path):
        return
    if node.kind in ("file", "sparse"):
        with path.open("xb") as file:
            file.write(node.data)
            if node.kind == "sparse":
                file.seek(node.hole * 65536, os.SEEK_CUR)
                file.write(node.data + b"end")
                file.truncate(file.tell() + node.hole * 4096)
    elif node.kind == "symlink":
        path.symlink_to("../a")
    elif node.kind == "hardlink":
        files = [each for each in sorted(path.parent.iterdir()) if each.is_file() and not each.is_symlink()]
        if files and not files[0].name.startswith(".wh."):
            os.link(files[0], path)
        return
    elif node.kind == "dir":
        path.mkdir()
    else:
        kinds = {"fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK}
        os.mknod(path, kinds[node.kind] | 0o600, os.makedev(1, 3))
    os.chown(path, *node.owner, follow_symlinks=False)
    if node.kind != "symlink":
        os.chmod(path, node.mode)
    if node.kind in ("file", "dir") and node.xattr:
        os.setxattr(path, "user.mark", node.xattr)
    os.utime(path, ns=(node.mtime, node.mtime), follow_symlinks=False)


def archive(root: Path, style: list[str], *, sparse: bool = True) -> bytes:
    """Return what GNU tar makes of a tree."""
    holes = ["--sparse"] if sparse else []
    command = ["tar", *holes, "--numeric-owner", "--sort=name", *style, "-C", str(root), "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def layout(directory: Path, layers: list[bytes]) -> None:
    """Write an image as an OCI layout with the tag "it"."""
    (directory / "blobs/sha256").mkdir(parents=True)

    def blob(data: bytes, media: str) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (directory / "blobs/sha256" / name).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{name}", "size": len(data)}

    media = MEDIA["oci"]
    ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}, "config": {}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": media["manifest"],
        "config": blob(json.dumps(config).encode(), media["config"]),
        "layers": [blob(compress(layer, "gzip"), media["gzip"]) for layer in layers],
    }
    entry = blob(json.dumps(manifest).encode(), media["manifest"])
    entry["annotations"] = {"org.opencontainers.image.ref.name": "it"}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def seen(root: Path) -> dict[str, dict[str, Any]]:
    """Return what a process sees of a tree.

    umoci leaves marks of its own in xattrs, which no image can set. Under overlayfs a file's count of links includes
    names that a layer above hides, so that only which names are one file is compared.
    """
    found = unpack.look(root)
    names = Counter(entry["links"][0] for entry in found.values() if "links" in entry)
    for entry in found.values():
        entry["xattrs"] = {key: value for key, value in entry["xattrs"].items() if not key.startswith("user.rootless")}
        first, _ = entry.pop("links", ("", 0))
        entry["one with"] = first if names[first] > 1 else ""
    return found


@given(layers=LAYERS, style=st.sampled_from(sorted(STYLES)))
@settings(
    max_examples=EXAMPLES or 20,
    derandomize=not EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # a failure is told as it was found: shrinking it takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_same_tree_as_umoci(helper: Helper, layers: list[list[Node]], style: str) -> None:
    """Content, owner, mode, times, attributes, links, devices and holes agree, whiteouts and opaque directories too."""
    scratch = Path(tempfile.mkdtemp(prefix="bhumoci"))
    try:
        tars, theirs = [], []
        below: set[str] = set()
        for number, nodes in enumerate(layers):
            tree = scratch / f"layer{number}"
            tree.mkdir()
            build(tree, nodes, below)
            tars.append(archive(tree, STYLES[style]))
            # umoci 0.4.7 refuses GNU's own type for a file with holes, and so gets the same file without.
            theirs.append(archive(tree, STYLES[style], sparse=style.startswith("pax")))
        layout(scratch / "oci", theirs)
        command = ["umoci", "unpack", "--image", f"{scratch}/oci:it", str(scratch / "bundle")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

        chain = helper.layers(*tars)

        view = Overlayfs(helper.snapshots, helper.client).view("999999", chain)
        with unpack.mounted(view.mounts, scratch / "ours") as ours:
            assert seen(ours) == seen(scratch / "bundle/rootfs")
        for name in chain:
            helper.client.remove(name)
    finally:
        shutil.rmtree(scratch)
