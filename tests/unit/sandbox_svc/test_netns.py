from pathlib import Path
from typing import Any

import pytest

from sandbox_svc import linux, netns


def test_remove_of_what_is_gone_succeeds(tmp_path: Path) -> None:
    """Removing twice, and removing what never was, is no error."""
    netns.remove(tmp_path / "cni-gone")
    plain = tmp_path / "cni-plain"
    plain.touch()
    try:
        netns.remove(plain)
    except PermissionError:
        pytest.skip("umount2 needs CAP_SYS_ADMIN")
    netns.remove(plain)
    assert not plain.exists()


def test_a_plain_file_is_no_namespace(tmp_path: Path) -> None:
    """The file that a reboot left without its mount does not count as a namespace."""
    (tmp_path / "cni-x").touch()
    assert not netns.is_namespace(tmp_path / "cni-x")
    assert not netns.is_namespace(tmp_path / "gone")
    assert not netns.is_namespace("")
    assert netns.is_namespace("/proc/self/ns/net")


def test_a_failed_creation_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel refuses, the thread's error reaches the caller and the pin's file is gone."""

    def refuse(flags: int) -> None:
        raise OSError(1, "unshare: Operation not permitted", hex(flags))

    monkeypatch.setattr(linux, "unshare", refuse)
    monkeypatch.setattr(linux, "umount2", _not_mounted)
    with pytest.raises(OSError, match="unshare"):
        netns.create(tmp_path / "cni-x")
    assert list(tmp_path.iterdir()) == []


def _not_mounted(*_: Any) -> None:
    raise OSError(22, "umount2: Invalid argument", "x")


def test_id_mappings_are_written_as_the_kernel_reads_them() -> None:
    """Every mapping is one line: id inside, id outside, length."""
    mappings = [netns.IdMapping(0, 100000, 65536), netns.IdMapping(65536, 300000, 1)]
    assert netns._map_lines(mappings) == "0 100000 65536\n65536 300000 1\n"
