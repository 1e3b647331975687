"""Where plugins come from: a directory of programs, and a socket that is ours alone."""

import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.config.model import Nri
from sandbox_svc.nri import launch
from sandbox_svc.nri.listener import CONNECTION_LIMIT, Listener
from sandbox_svc.nri.registry import Registry
from support.nri import MemoryNode, eventually


def program(directory: Path, name: str, content: bytes = b"#!/bin/sh\n", mode: int = 0o755) -> None:
    (directory / name).write_bytes(content)
    (directory / name).chmod(mode)


def test_programs_are_found_with_their_settings(tmp_path: Path) -> None:
    """NN-name programs in order, with NN-name.conf before name.conf; what is no program is passed over."""
    plugins, settings = tmp_path / "p", tmp_path / "c"
    plugins.mkdir()
    settings.mkdir()
    program(plugins, "20-two")
    program(plugins, "10-one")
    program(plugins, "30-three-b")
    program(plugins, "40-data", mode=0o644)
    (plugins / "50-directory").mkdir()
    (settings / "10-one.conf").write_text("own")
    (settings / "one.conf").write_text("general")
    (settings / "two.conf").write_text("general two")

    found = launch.discover(str(plugins), str(settings))

    assert [(one.index, one.base, one.settings) for one in found] == [
        ("10", "one", "own"),
        ("20", "two", "general two"),
        ("30", "three-b", ""),
    ]


def test_what_cannot_be_a_plugin_is_said_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bad names, WebAssembly, settings that are too long or not text: each is logged, and the rest is used."""
    program(tmp_path, "noindex")
    program(tmp_path, "10-wasm", b"\0asm\x01\0\0\0rest")
    program(tmp_path, "20-long")
    program(tmp_path, "30-binary")
    program(tmp_path, "40-good")
    (tmp_path / "20-long.conf").write_bytes(b"x" * (launch.SETTINGS_LIMIT + 1))
    (tmp_path / "30-binary.conf").write_bytes(b"\xff\xfe")
    os.symlink("nowhere", tmp_path / "50-dangling")

    with caplog.at_level(logging.ERROR):
        found = launch.discover(str(tmp_path), str(tmp_path))

    assert [one.base for one in found] == ["good"]
    for name in ("noindex", "10-wasm", "20-long", "30-binary", "50-dangling"):
        assert name in caplog.text


def test_no_directory_is_no_plugins(tmp_path: Path) -> None:
    """A node without the directory has no plugins, and nothing to say about it."""
    assert launch.discover(str(tmp_path / "none"), str(tmp_path)) == []


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """A listener in a directory that is not there yet."""
    path = str(tmp_path / "nri" / "nri.sock")
    made = Listener(path, Registry(Nri(plugin_registration_timeout=0.2), MemoryNode(), "1"))
    yield made
    made.stop()


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_socket_is_roots_alone(listener: Listener) -> None:
    """The directory it makes and the socket let nobody else in; both go, or stay, as they should."""
    listener.start()

    assert listener.problem == ""
    assert mode(listener.path) == 0o600
    assert mode(Path(listener.path).parent) == 0o700
    assert os.listdir(Path(listener.path).parent) == ["nri.sock"]
    listener.stop()
    assert not os.path.exists(listener.path)


def test_a_directory_that_is_there_keeps_its_mode(listener: Listener) -> None:
    """The socket may stand in a directory of others."""
    directory = Path(listener.path).parent
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    listener.start()

    assert mode(directory) == 0o755


def test_a_dead_socket_is_replaced(listener: Listener) -> None:
    """What a killed process left is no obstacle."""
    Path(listener.path).parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(listener.path)
    listener.start()

    assert listener.problem == ""
    with socket.socket(socket.AF_UNIX) as plugin:
        plugin.connect(listener.path)


def test_a_live_socket_is_left_to_its_owner(listener: Listener) -> None:
    """Another runtime's socket goes on to be its own, and why no plugin can connect is said."""
    Path(listener.path).parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(listener.path)
        other.listen()
        listener.start()
        assert "another process" in listener.problem
        listener.stop()
        with socket.socket(socket.AF_UNIX) as plugin:
            plugin.connect(listener.path)
            other.settimeout(5)
            other.accept()[0].close()


def test_a_socket_that_took_its_place_is_not_removed(listener: Listener) -> None:
    """On the way out only the own socket is removed."""
    listener.start()
    os.unlink(listener.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(listener.path)
        listener.stop()
        assert os.path.exists(listener.path)


def test_a_path_that_cannot_be_is_a_problem_not_an_end(tmp_path: Path) -> None:
    """A socket that cannot be opened is said, and nothing is raised."""
    (tmp_path / "file").write_text("")
    blocked = Listener(str(tmp_path / "file" / "nri.sock"), Registry(Nri(), MemoryNode(), "1"))
    long = Listener(str(tmp_path / ("x" * 200)), Registry(Nri(), MemoryNode(), "1"))
    blocked.start()
    long.start()

    assert "cannot connect" in blocked.problem
    assert "cannot connect" in long.problem


def test_silent_connections_are_bounded_and_end(listener: Listener) -> None:
    """One more than the limit is closed at once; the silent ones go when the time to register is over."""
    listener.start()
    sockets = []
    try:
        for _ in range(CONNECTION_LIMIT + 1):
            one = socket.socket(socket.AF_UNIX)
            sockets.append(one)
            one.connect(listener.path)
            one.settimeout(5)
        assert sockets[-1].recv(1) == b""
        assert sockets[0].recv(1) == b""
        eventually(lambda: listener._registering == 0)
    finally:
        for one in sockets:
            one.close()
