"""Kills for want of memory, with the groups of systemd's scopes coming and going."""

import shutil
from pathlib import Path

import pytest

from sandbox_svc.shim.cgroup import Cgroup
from sandbox_svc.shim.tally import Tally, slice_of


def count(directory: Path, kills: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.events").write_text(f"low 0\nmax 9\noom 5\noom_kill {kills}\n")


def scope(tmp_path: Path, name: str, below: str = "") -> tuple[Path, Cgroup]:
    directory = tmp_path / "pods.slice" / "pods-1.slice" / f"cri-containerd-{name}.scope" / below
    count(directory, 0)
    return directory, Cgroup({"": str(directory)})


def test_the_slice_tells_what_a_removed_scope_cannot(tmp_path: Path) -> None:
    """Kills are the missing container's only as far as neither the past nor another container accounts for them."""
    pod, tally = tmp_path / "pods.slice" / "pods-1.slice", Tally()
    count(pod, 4)
    places = {}
    for name in ("a", "b", "c"):
        places[name], group = scope(tmp_path, name)
        tally.add(name, group)
    assert [tally.kills(name) for name in places] == [0, 0, 0]

    count(places["a"], 2)
    count(pod, 6)
    shutil.rmtree(places["b"])
    assert (tally.kills("a"), tally.kills("b")) == (2, 0)
    shutil.rmtree(places["a"])
    assert (tally.kills("a"), tally.kills("b")) == (2, 0)

    count(pod, 7)
    shutil.rmtree(places["c"])
    assert tally.kills("c") == 1
    for name in ("a", "b", "c"):
        tally.forget(name)
    place, group = scope(tmp_path, "d")
    tally.add("d", group)
    shutil.rmtree(place)
    assert tally.kills("d") == 0


def test_without_a_slice_of_the_pod_nothing_is_guessed(tmp_path: Path) -> None:
    """A plain group that is gone had no kills beyond those seen; an unknown container has none."""
    tally, directory = Tally(), tmp_path / "kubepods" / "c"
    count(directory, 0)
    count(tmp_path / "kubepods", 0)
    tally.add("c", Cgroup({"": str(directory)}))
    count(directory, 1)
    assert tally.kills("c") == 1
    count(tmp_path / "kubepods", 3)
    shutil.rmtree(directory)
    assert (tally.kills("c"), tally.kills("other")) == (1, 0)
    tally.forget("other")


def test_version_1(tmp_path: Path) -> None:
    """On version 1 the count is in memory.oom_control."""
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    tally = Tally()
    tally.add("c", Cgroup({"memory": str(tmp_path), "": "/nonexistent"}))
    assert tally.kills("c") == 2


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/cg/a.slice/a-b.slice/cri-containerd-x.scope", "/cg/a.slice/a-b.slice"),
        ("/cg/a.slice/cri-containerd-x.scope/container", "/cg/a.slice"),
        ("/cg/system.slice/cri-containerd-x.scope", ""),
        ("/cg/system.slice/agent.service/pod/x", ""),
        ("/cg/kubepods/pod/x", ""),
    ],
)
def test_slice_of(path: str, expected: str) -> None:
    """The slice of a scope is found above crun's further group, too; slices shared with services do not count."""
    assert slice_of(Cgroup({"": path})) == expected
