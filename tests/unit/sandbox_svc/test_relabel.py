"""SELinux labels of volumes: written into the files' attributes, on whatever kernel."""

import os
from pathlib import Path

import pytest

from bulkhead.errors import FailedPrecondition, InvalidArgument
from sandbox_svc import relabel

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What was written, by real path: setting the attribute itself takes root or SELinux."""
    found: dict[str, bytes] = {}

    def setxattr(path: str, name: str, value: bytes, *, follow_symlinks: bool) -> None:
        assert (name, follow_symlinks) == ("security.selinux", False)
        found[os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))] = value

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

    def setxattr(path: str, *_: object, **__: object) -> None:
        where = os.path.relpath(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)), tmp_path)
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
