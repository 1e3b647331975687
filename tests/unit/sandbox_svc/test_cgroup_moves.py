"""The kernel kept ready for moves between cgroups."""

import threading
import time
from pathlib import Path

import pytest

from sandbox_svc import cgroup_moves
from sandbox_svc.cgroup_moves import Readiness

OWN = "5:cpu:/elsewhere\n4:pids:/svc\n1:name=systemd:/svc\n0::/svc\n"


def threads() -> int:
    """Return how many threads write."""
    return sum(thread.name == "cgroup-moves" for thread in threading.enumerate())


def until_quiet() -> None:
    """Wait until none does."""
    deadline = time.monotonic() + 60
    while threads():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tree(base: Path, *files: str) -> tuple[Path, Path]:
    """Make a cgroup root with these files, and a process's own lines; return both."""
    for name in files:
        path = base / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (base / "own").write_text(OWN)
    return base / "cgroup", base / "own"


@pytest.mark.parametrize(
    ("files", "written"),
    [
        (("cgroup.controllers", "svc/cgroup.procs"), "svc/cgroup.procs"),
        (("pids/svc/cgroup.procs", "systemd/svc/cgroup.procs", "cpu/elsewhere/cgroup.procs"), "pids/svc/cgroup.procs"),
        (("systemd/svc/cgroup.procs", "cpu/elsewhere/cgroup.procs"), "systemd/svc/cgroup.procs"),
    ],
)
def test_this_process_is_moved_to_where_it_is(tmp_path: Path, files: tuple[str, ...], written: str) -> None:
    """Again and again while somebody holds it, in the one hierarchy or one without limits; one thread does for all."""
    root, own = tree(tmp_path, *files)
    readiness = Readiness(root, own)
    with readiness.kept(), readiness.kept():
        for _ in range(2):
            deadline = time.monotonic() + 60
            while (root / written).read_text() != "0":
                assert time.monotonic() < deadline
                time.sleep(0.005)
            (root / written).write_text("")
        assert threads() == 1
    until_quiet()
    assert {name for name in files if (root / name).read_text()} <= {written}
    with readiness.kept():
        assert threads() == 1
    until_quiet()


def test_where_it_cannot_be_done_nothing_fails(tmp_path: Path) -> None:
    """A node with other hierarchies, or cgroups that are read-only, is asked once."""
    readiness = Readiness(*tree(tmp_path, "cpu/elsewhere/cgroup.procs"))
    with readiness.kept():
        until_quiet()
    with readiness.kept():
        assert threads() == 0


def test_it_goes_on_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CreateContainer is followed by StartContainer: the thread that serves both is the same."""
    monkeypatch.setattr(cgroup_moves, "LINGER", 60.0)
    readiness = Readiness(*tree(tmp_path, "pids/svc/cgroup.procs"))
    with readiness.kept():
        pass
    time.sleep(0.1)
    assert threads() == 1
    monkeypatch.setattr(cgroup_moves, "LINGER", 0.1)
    with readiness.kept():
        assert threads() == 1
    until_quiet()


def test_a_process_without_room_for_a_thread_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being made does not fail for want of this thread, and the next one has it again."""
    readiness, start = Readiness(*tree(tmp_path, "pids/svc/cgroup.procs")), threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with readiness.kept():
        assert threads() == 0
    monkeypatch.setattr(threading.Thread, "start", start)
    with readiness.kept():
        assert threads() == 1
    until_quiet()


def test_an_operation_that_takes_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that waits for minutes for its network costs nothing meanwhile; the next one is served as ever."""
    monkeypatch.setattr(cgroup_moves, "LONGEST", 0.1)
    readiness = Readiness(*tree(tmp_path, "pids/svc/cgroup.procs"))
    with readiness.kept():
        until_quiet()
        monkeypatch.setattr(cgroup_moves, "LONGEST", 60.0)
        with readiness.kept():
            assert threads() == 1
    until_quiet()


def test_a_group_of_any_name_is_no_failure(tmp_path: Path) -> None:
    """The names of cgroups are bytes: those that are no text are passed over like any other hierarchy."""
    root, own = tree(tmp_path, "pids/svc/cgroup.procs")
    own.write_bytes(b"5:cpu:/else\xff\x0bwhere\n4:pids:/svc\n")
    with Readiness(root, own).kept():
        deadline = time.monotonic() + 60
        while (root / "pids/svc/cgroup.procs").read_text() != "0":
            assert time.monotonic() < deadline
            time.sleep(0.005)
    until_quiet()
