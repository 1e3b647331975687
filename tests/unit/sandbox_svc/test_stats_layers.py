import os
import threading
import time
from pathlib import Path

import pytest

from sandbox_svc.stats import layers


def wait_for(meter: layers.LayerMeter, directory: Path, above: int = 0) -> layers.LayerUsage:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = meter.usage(str(directory))
        if found and found.timestamp > above:
            return found
        time.sleep(0.01)
    raise AssertionError("no count within a minute")


def test_hard_links_count_once_and_links_are_not_followed(tmp_path: Path) -> None:
    """Blocks are those of du: one for each inode, nothing outside the directory."""
    (tmp_path / "a").write_bytes(b"x" * 10000)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/out").symlink_to("/usr")
    found = layers.measure(str(tmp_path))
    entries = [tmp_path, tmp_path / "a", tmp_path / "sub", tmp_path / "sub/out"]
    assert found.inodes == len(entries)
    assert found.used_bytes == sum(entry.lstat().st_blocks * 512 for entry in entries)


def test_a_count_is_repeated(tmp_path: Path) -> None:
    """After the period a watched directory is counted again."""
    meter = layers.LayerMeter(0.01)
    first = wait_for(meter, tmp_path)
    (tmp_path / "new").touch()
    # The next count may have begun before the file was there; the one after it has not.
    second = wait_for(meter, tmp_path, first.timestamp)
    third = wait_for(meter, tmp_path, second.timestamp)
    assert third.inodes == first.inodes + 1
    meter.close()


def test_nobody_waits_for_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is answered at once, however long counting takes."""
    counted = threading.Event()
    monkeypatch.setattr(layers, "measure", lambda directory: counted.wait(60) and None)
    meter = layers.LayerMeter(10)
    began = time.monotonic()
    assert meter.usage(str(tmp_path)) is None
    assert meter.usage(str(tmp_path)) is None
    assert time.monotonic() - began < 50
    counted.set()
    meter.close()


def test_forgotten_and_missing_directories_have_no_count(tmp_path: Path) -> None:
    """A directory that is not there is no error; a forgotten one is no longer known."""
    meter = layers.LayerMeter(10)
    assert meter.usage(str(tmp_path / "none")) is None
    wait_for(meter, tmp_path)
    meter.forget(str(tmp_path))
    meter.close()
    assert meter.usage(str(tmp_path)) is None
