"""Removing trees with real mounts in them."""

import os
from pathlib import Path

import pytest

from sandbox_svc import linux, trees
from sandbox_svc.shim import mounts

pytestmark = pytest.mark.root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What is mounted, and must be whole afterwards."""
    (tmp_path / "outside/directory").mkdir(parents=True)
    (tmp_path / "outside/directory/file").write_text("kept")
    return tmp_path / "outside"


def bind(source: Path, target: Path) -> None:
    """Bind a file or directory of the same file system: only the kernel can tell that it is a mount."""
    linux.mount(source, target, None, linux.MS_BIND)


def test_nothing_is_removed_through_a_mount(tmp_path: Path, outside: Path) -> None:
    """Mounts in a tree, at its top, over each other and of a file are taken off; what they show stays."""
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/file").touch()
    (tree / "plain").touch()
    bind(outside / "directory/file", tree / "a/file")
    bind(outside, tree / "a/b")
    bind(outside / "directory", tree / "a/b/directory")
    bind(outside, tree / "a/b")

    trees.remove(tree)

    assert not tree.exists()
    assert (outside / "directory/file").read_text() == "kept"
    tree.mkdir()
    bind(outside, tree)
    trees.remove(tree)
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert (outside / "directory/file").read_text() == "kept"
    assert trees.mounts_below(tmp_path) == []


@pytest.mark.parametrize("nested", ["rootfs", "rootfs/directory"])
def test_a_rootfs_is_detached_with_all_below_it(tmp_path: Path, outside: Path, nested: str) -> None:
    """Also where the rootfs itself is no mount; nothing mounted is success."""
    rootfs = tmp_path / "rootfs"
    (rootfs / "directory").mkdir(parents=True)
    bind(outside, tmp_path / nested)
    bind(outside / "directory", tmp_path / nested / "directory")

    mounts.unmount(str(rootfs))

    assert trees.mounts_below(tmp_path) == []
    mounts.unmount(str(rootfs))
    trees.detach(rootfs)
    trees.detach(tmp_path / "nothing")
    assert os.listdir(rootfs) == ["directory"]
