"""A node with a proxy snapshotter, which is a fake in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fake_snapshots import FakeSnapshots, fake_snapshots
from support.images import Image, Layer
from support.proxied_node import Applying, ProxiedNode


@pytest.fixture
def image() -> Image:
    """An image of three layers."""
    return Image([Layer().file(name, name).tar() for name in ("one", "two", "three")])


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "snapshots.sock"


@pytest.fixture
def fake(socket: Path) -> Iterator[FakeSnapshots]:
    with fake_snapshots(socket) as made:
        yield made


@pytest.fixture
def node(tmp_path: Path, socket: Path) -> Iterator[ProxiedNode]:
    made = ProxiedNode(tmp_path, unpack=Applying(), options={"disable_snapshot_annotations": False}).join(socket)
    yield made
    made.proxies.close()
    made.close()
