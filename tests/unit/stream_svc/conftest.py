"""A real server in a thread of its own, and the fake shim that it redeems tickets at."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_svc import multiplexer, spdy_multiplexer
from stream_svc.session import Limits
from support.fake_shim import FakeShim
from support.stream_server import RunningServer, ServerMaker


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits that only a bad client sees."""
    monkeypatch.setattr(multiplexer, "LOOK", 0.2)
    monkeypatch.setattr(spdy_multiplexer, "COURTESY", 0.1)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[FakeShim]:
    """The fake shim."""
    fake = FakeShim(tmp_path)
    yield fake
    fake.close()


@pytest.fixture
def make_server(tmp_path: Path, shim: FakeShim) -> Iterator[ServerMaker]:
    """Make servers with limits of the test's choice."""
    made: list[RunningServer] = []

    def make(idle: float = 60.0, drain: float = 10.0, tls: ssl.SSLContext | None = None) -> RunningServer:
        made.append(RunningServer(tmp_path, Limits(idle, drain), tls))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(make_server: ServerMaker) -> RunningServer:
    """The server."""
    return make_server()
