"""A fake registry and a node to pull with, for every test of image-svc."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fake_registry import FakeRegistry, fake_registry
from support.image_node import Node
from support.images import Image, Layer


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Run a fake registry."""
    with fake_registry() as made:
        yield made


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Set up a node without any registry configuration."""
    made = Node(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Return a maker of nodes over one directory, each as after a restart of the one before."""
    made: list[Node] = []

    def make(**fields: Any) -> Node:
        if made:
            made[-1].close()
        made.append(Node(tmp_path, **fields))
        return made[-1]

    yield make
    if made:
        made[-1].close()


@pytest.fixture
def image() -> Image:
    """Build an image of three small layers, the first and the last of them alike."""
    same = Layer().dir("etc").file("etc/motd", "hello\n").tar()
    other = Layer().file("bin/true", b"\x7fELF" + bytes(range(256)) * 300, 0o755).tar()
    return Image([same, other, same], {"User": "1000:1000"})
