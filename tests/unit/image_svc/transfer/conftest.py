"""A running image-svc for the tests of archives."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.image_station import Station, station


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Station]:
    """Run the service over a scratch directory."""
    with station(tmp_path) as made:
        yield made
