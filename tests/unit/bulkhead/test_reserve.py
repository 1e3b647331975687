"""Room for removing what a full disk is full of."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bulkhead.reserve import SIZE, Reserve


def test_it_is_given_up_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks are there, stay while there is room, go when there is none, and come back with ease alone."""
    room = 100 * SIZE
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=room // 4096, f_frsize=4096))
    file = tmp_path / "images.reserve"

    def held() -> bool:
        return file.stat().st_blocks * 512 >= SIZE

    reserve = Reserve(file)
    assert held()
    reserve.spend()
    assert held()
    room = SIZE - 4096
    reserve.spend()
    assert not held()
    room = 2 * SIZE
    reserve.keep()
    assert not held()
    room = 100 * SIZE
    reserve.keep()
    assert held()


def test_a_disk_that_is_full_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no reserve then, and nothing fails for it."""
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=0, f_frsize=4096))
    reserve = Reserve(tmp_path / "images.reserve")
    reserve.spend()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_became_full_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the blocks, which is all that was to be had, is given up as well."""
    file = tmp_path / "images.reserve"
    file.write_bytes(bytes(SIZE // 2))
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=0, f_frsize=4096))
    Reserve(file).spend()
    assert file.stat().st_blocks == 0
