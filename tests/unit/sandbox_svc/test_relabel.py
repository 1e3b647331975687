"""SELinux labels of volumes: written into the files' attributes, on whatever kernel."""

import os
from pathlib import Path

import pytest

from bulkhead.errors import FailedPrecondition, InvalidArgument
from sandbox_svc import relabel

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


def reached(path: str, *, follow_symlinks: bool) -> str:
    """Return the real path of what such a call changes."""
    if follow_symlinks:
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What was written, by real path: setting the attribute itself takes root or SELinux."""
    found: dict[str, bytes] = {}

    def setxattr(path: str, name: str, value: bytes, *, follow_symlinks: bool) -> None:
        assert name == "security.selinux"
        found[reached(path, follow_symlinks=follow_symlinks)] = value

    monkeypatch.setattr(os, "setxattr", setxattr)
    return found


def test_a_tree(tmp_path: Path, written: dict[str, bytes]) -> None:
    """Everything below a directory is labelled, symlinks themselves and not what they point to."""
    (tmp_path / "v" / "a").mkdir(parents=True)
    (tmp_path / "v" / "a" / "f").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "g").touch()
    (tmp_path / "v" / "link").symlink_to("../outside")
    relabel.relabel([str(tmp_path / "v")], LABEL)
    assert {os.path.relpath(path, tmp_path) for path in written} == {"v", "v/a", "v/a/f", "v/link"}
    assert set(written.values()) == {LABEL.encode()}


def test_a_file_and_no_label(tmp_path: Path, written: dict[str, bytes]) -> None:
    """A file is labelled alone; without a label nothing is."""
    (tmp_path / "f").touch()
    relabel.relabel([str(tmp_path / "f")], "")
    assert written == {}
    relabel.relabel([str(tmp_path / "f")], LABEL)
    assert written == {str(tmp_path / "f"): LABEL.encode()}


@pytest.mark.parametrize("name", ["v", "v/a", "v/a/f"])
def test_a_path_that_changes_after_it_was_resolved(tmp_path: Path, written: dict[str, bytes], name: str) -> None:
    """A step of the path that has become a symlink meanwhile leads nowhere: what it points to keeps its label."""
    (tmp_path / "outside" / "a").mkdir(parents=True)
    (tmp_path / "outside" / "a" / "f").touch()
    target = {"v": "outside", "v/a": "../outside/a", "v/a/f": "../../outside/a/f"}[name]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).symlink_to(target)
    for path in ("v", "v/a", "v/a/f")[("v", "v/a", "v/a/f").index(name) :]:
        with pytest.raises(FailedPrecondition, match="selinux_relabel"):
            relabel.relabel([str(tmp_path / path)], LABEL)
    assert written == {}


def test_a_directory_that_is_replaced_during_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: dict[str, bytes]
) -> None:
    """The directory that was checked is walked, even if its name leads to another one as soon as it has its label."""
    for name in ("v", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch()
    record = os.setxattr

    def swap(path: str, name: str, value: bytes, *, follow_symlinks: bool) -> None:
        record(path, name, value, follow_symlinks=follow_symlinks)
        if (tmp_path / "v").is_dir() and not (tmp_path / "moved").exists():
            (tmp_path / "v").rename(tmp_path / "moved")
            (tmp_path / "outside").rename(tmp_path / "v")

    monkeypatch.setattr(os, "setxattr", swap)
    relabel.relabel([str(tmp_path / "v")], LABEL)
    assert {os.path.relpath(path, tmp_path) for path in written} == {"v", "moved/of-v"}


@pytest.mark.parametrize("path", ["/", "/usr", "/etc/", "/var/lib", "/home/.."])
def test_the_nodes_own_directories(path: str, written: dict[str, bytes]) -> None:
    """A request to relabel what the node lives on is refused."""
    with pytest.raises(InvalidArgument, match="selinux_relabel"):
        relabel.relabel([path], LABEL)
    assert written == {}


def test_the_nodes_own_directories_by_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: dict[str, bytes]
) -> None:
    """Where /bin is a symlink to usr/bin, or /home one to var/home, that is the node's own, too."""
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    monkeypatch.setattr(relabel, "_KEPT", frozenset({str(tmp_path / "bin"), str(tmp_path / "none")}))
    for name in ("bin", "usr/bin"):
        with pytest.raises(InvalidArgument, match="selinux_relabel"):
            relabel.relabel([str(tmp_path / name)], LABEL)
    assert written == {}


def test_a_file_system_without_labels_inside_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mounted there and takes none leaves the rest of the volume no less labelled."""
    labelled: list[str] = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").touch()

    def setxattr(path: str, *_: object, follow_symlinks: bool) -> None:
        where = os.path.relpath(reached(path, follow_symlinks=follow_symlinks), tmp_path)
        if where.startswith("b"):
            raise OSError(95, os.strerror(95))
        labelled.append(where)

    monkeypatch.setattr(os, "setxattr", setxattr)
    relabel.relabel([str(tmp_path)], LABEL)
    assert sorted(labelled) == [".", "a", "a/f", "c", "c/f"]


@pytest.mark.parametrize(("number", "fatal"), [(95, False), (30, True)])
def test_file_systems_that_do_not_take_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, fatal: bool
) -> None:
    """A file system without labels (ENOTSUP) is fine; one that refuses them (EROFS) is not."""

    def setxattr(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", setxattr)
    if fatal:
        with pytest.raises(FailedPrecondition, match=str(tmp_path)):
            relabel.relabel([str(tmp_path)], LABEL)
    else:
        relabel.relabel([str(tmp_path)], LABEL)
