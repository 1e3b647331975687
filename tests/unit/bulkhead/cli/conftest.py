"""A running image-svc for the tests of the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import archives
from support.fake_registry import FakeRegistry, fake_registry
from support.image_station import Station, station
from support.images import Image, Layer


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Station]:
    """Run the service over a scratch directory."""
    with station(tmp_path) as made:
        yield made


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Run a fake registry."""
    with fake_registry() as made:
        yield made


@pytest.fixture
def image() -> Image:
    """Return an image of two layers."""
    return Image([Layer().file("a", "lower").tar(), Layer().file("b", "upper").tar()], {"Cmd": ["sh"]})


@pytest.fixture
def here(node: Station, image: Image) -> str:
    """Have the image here as app:1 and return its id."""
    return str(node.send(archives.tar(archives.oci(image))).images[0].id)
