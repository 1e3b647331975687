"""Fixtures of the tests of sandbox-svc."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_svc import cgroup
from support.one_pod import one_pod


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A pod with one running container, a recording shim, and a ledger that notes what it undoes."""
    monkeypatch.setattr(cgroup, "kill", lambda path, timeout=10.0: True)
    with one_pod(tmp_path) as made:
        yield made
