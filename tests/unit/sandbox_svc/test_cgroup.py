import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.config.model import RuntimeHandler
from bulkhead.errors import InvalidArgument
from sandbox_svc import cgroup
from sandbox_svc.oci import resources

ID = "0123456789ab"


def tree(root: Path, *directories: str) -> Path:
    for name in directories:
        (root / name).mkdir(parents=True, exist_ok=True)
    return root


def v2(root: Path) -> Path:
    (root / "cgroup.controllers").write_text("cpu memory pids")
    return root


def test_the_mode_is_told_by_what_is_mounted(tmp_path: Path) -> None:
    """Version 2 at the root, beside version 1 controllers, or not at all."""
    assert cgroup.mode(tree(tmp_path / "a", "memory")) == "v1"
    hybrid = tree(tmp_path / "b", "memory", "unified")
    (hybrid / "unified/cgroup.controllers").touch()
    assert cgroup.mode(hybrid) == "hybrid"
    assert cgroup.mode(v2(tree(tmp_path / "c", "x"))) == "v2"


@pytest.mark.parametrize(
    ("parent", "below"),
    [
        ("/kubepods/burstable/podX", f"kubepods/burstable/podX/{ID}"),
        ("/kubepods//podX/", f"kubepods/podX/{ID}"),
        (
            "kubepods-burstable-podX.slice",
            f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/cri-containerd-{ID}.scope",
        ),
        ("/kubepods.slice/kubepods-podX.slice", f"kubepods.slice/kubepods-podX.slice/cri-containerd-{ID}.scope"),
    ],
)
def test_a_container_is_where_the_runtime_puts_it(parent: str, below: str) -> None:
    """The group of the cgroupsPath that the runtime is handed, in both drivers' styles; one is a path, one a scope."""
    spec: dict[str, Any] = {"linux": {}}
    resources.apply_cgroup_parent(spec, parent, ID, RuntimeHandler(name="runc"))
    assert cgroup.relative(spec["linux"]["cgroupsPath"]) == below
    assert cgroup.relative(f":cri-containerd:{ID}") == f"system.slice/cri-containerd-{ID}.scope"


def test_a_parent_is_a_path_or_a_slice() -> None:
    """The kubelet's cgroup_parent becomes the group itself; none stays none."""
    assert cgroup.parent_path("/kubepods/podX/", systemd=False) == "/kubepods/podX"
    assert cgroup.parent_path("a-b.slice", systemd=True) == "/a.slice/a-b.slice"
    assert cgroup.parent_path("", systemd=True) == ""
    assert cgroup.expand_slice("-.slice") == "/"


@pytest.mark.parametrize("name", ["a.scope", "a--b.slice", "-a.slice", ".slice", "a/b.slice"])
def test_what_is_no_slice_is_refused(name: str) -> None:
    """Names that systemd would refuse are refused."""
    with pytest.raises(InvalidArgument, match="slice"):
        cgroup.expand_slice(name)


@given(st.text(alphabet="ab./:-", max_size=20))
def test_no_path_leaves_the_hierarchy(path: str) -> None:
    """Whatever a path holds, the group lies below the root, or the path is refused."""
    try:
        below = cgroup.relative(path)
    except InvalidArgument:
        return
    assert ".." not in below.split("/")
    assert not below.startswith("/")


def test_a_group_is_made_and_removed_in_every_hierarchy(tmp_path: Path) -> None:
    """On version 1 each controller has the group; removing takes children along and may be repeated."""
    root = tree(tmp_path, "memory", "cpuset")
    (root / "cpuset/cpuset.cpus").write_text("0-1")
    cgroup.create("/pods/podX", root)
    assert {path.parent.parent.name for path in cgroup.directories("/pods/podX", root)} == {"memory", "cpuset"}
    tree(root, "memory/pods/podX/child/grandchild")
    for _ in range(2):
        cgroup.remove("/pods/podX", root)
        assert cgroup.directories("/pods/podX", root) == []
    assert (root / "memory/pods").is_dir()


def test_a_new_cpuset_can_be_entered(tmp_path: Path) -> None:
    """A version 1 cpuset takes over its parent's processors where it has none."""
    root = tree(tmp_path, "cpuset/pods/podX")
    for group, text in (("", "0-1"), ("pods", ""), ("pods/podX", "\n")):
        (root / "cpuset" / group / "cpuset.cpus").write_text(text)
    cgroup.create("/pods/podX", root)
    assert (root / "cpuset/pods/podX/cpuset.cpus").read_text() == "0-1"


def test_parents_hand_their_controllers_down(tmp_path: Path) -> None:
    """On version 2 every parent enables for its children what it has."""
    root = v2(tree(tmp_path, "pods"))
    (root / "pods/cgroup.controllers").write_text("memory")
    cgroup.create("/pods/podX", root)
    assert (root / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (root / "pods/cgroup.subtree_control").read_text() == "+memory"


def test_the_root_group_is_never_touched(tmp_path: Path) -> None:
    """Neither kill nor remove does anything to the root, however it is written."""
    root = tree(tmp_path, "memory")
    (root / "memory/cgroup.procs").write_text("1\n")
    for path in ("", "/", "//./"):
        assert cgroup.kill(path, timeout=0, root=root)
        cgroup.remove(path, root)
    assert root.is_dir()


def test_processes_are_found_below_and_once(tmp_path: Path) -> None:
    """Processes of children count, each once whatever hierarchies list it, without zombies, foreigners and the dead."""

    root = tree(tmp_path, "memory/pod/child", "pids/pod")
    (root / "memory/pod/cgroup.procs").write_text("0\n4194305\n")
    (root / "memory/pod/child/cgroup.procs").write_text(f"{os.getpid()}\n")
    (root / "pids/pod/cgroup.procs").write_text(f"{os.getpid()}\n")
    assert cgroup.processes("/pod", root) == {os.getpid()}


def test_oom_kills_are_counted_in_both_versions(tmp_path: Path) -> None:
    """The count comes from memory.oom_control or memory.events, and is 0 where neither is."""
    one, two = tree(tmp_path / "1", "memory/pod"), v2(tree(tmp_path / "2", "pod"))
    (one / "memory/pod/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (two / "pod/memory.events").write_text("low 0\noom 2\noom_kill 4\noom_group_kill 0\n")
    assert (cgroup.oom_kills("/pod", one), cgroup.oom_kills("/pod", two), cgroup.oom_kills("/x", one)) == (3, 4, 0)


def test_limits_of_a_scope_may_be_in_a_group_within(tmp_path: Path) -> None:
    """crun's `container` below a scope is where its numbers are read; anywhere else that name means nothing."""
    place = "a.slice/cri-containerd-x.scope"
    plain, inner = v2(tree(tmp_path / "1", place)), v2(tree(tmp_path / "2", f"{place}/container", "pod/x/container"))
    assert cgroup.limited("a.slice:cri-containerd:x", plain) == place
    assert cgroup.limited("a.slice:cri-containerd:x", inner) == f"{place}/container"
    assert cgroup.limited("/pod/x", inner) == "pod/x"
    assert cgroup.limited("a.slice:cri-containerd:x", tree(tmp_path / "3", f"systemd/{place}/container")) == place
