"""Pieces of the supervisor that need no process: waits, lines, claims, the loop, what is taken away at the end."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead import cni_default
from bulkhead.config.model import Bulkhead, Config, Grpc
from bulkhead.errors import FailedPrecondition, NotFound
from bulkhead.sockets import is_live
from bulkhead.supervisor import claims, faces, pods
from bulkhead.supervisor.child import Backoff
from bulkhead.supervisor.loop import Loop
from bulkhead.supervisor.relay import LINE_LIMIT, Relay


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A stack below a scratch directory with a short name, without metrics ports and patience."""
    monkeypatch.setattr(claims, "ORPHANS_WAIT", 0.0)
    with tempfile.TemporaryDirectory(prefix="bh") as directory:
        yield _config(Path(directory))


def _config(tmp_path: Path) -> Config:
    ports = dict.fromkeys(Config().bulkhead.metrics_ports, -1)
    return replace(
        Config(),
        root=tmp_path / "root/io.bulkhead",
        state=tmp_path / "state/io.bulkhead",
        grpc=Grpc(address=f"unix://{tmp_path}/run/cri.sock"),
        bulkhead=Bulkhead(metrics_ports=ports),
    )


def test_waits_grow_in_a_crash_loop_only() -> None:
    """The first death is answered at once, quick ones in a row ever later, and a long life starts over."""
    backoff = Backoff()
    quick = [backoff.after(0.1) for _ in range(8)]

    assert quick == [0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0]
    assert backoff.after(60.0) == 0.05


def relayed(style: str, *pieces: bytes) -> list[bytes]:
    lines: list[bytes] = []
    relay = Relay("image-svc", style, lines.append)
    for piece in pieces:
        relay.feed(piece)
    relay.end()
    return lines


def test_own_log_lines_pass_unchanged() -> None:
    """A line of our logging, cut anywhere on its way, arrives whole and as it was."""
    line = b"2026-11-21T21:43:25.358Z info    image_svc: serving\n"

    assert relayed("text", line[:10], line[10:30], line[30:]) == [line]
    assert relayed("json", b'{"msg": "x"}\n') == [b'{"msg": "x"}\n']


def test_foreign_lines_get_an_origin() -> None:
    """What a program writes past its logging is dressed with time and name, in the configured format."""
    (text,) = relayed("text", b"Traceback: boom\n")
    (entry,) = relayed("json", b"boom")

    assert text.endswith(b" info    image-svc: Traceback: boom\n")
    assert {**json.loads(entry), "time": ""} == {"time": "", "level": "info", "logger": "image-svc", "msg": "boom"}


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_no_byte_is_lost(pieces: list[bytes]) -> None:
    """However output is cut, its lines come out in order."""
    lines = relayed("text", *pieces)
    whole = b"".join(pieces)
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()

    assert [line.decode(errors="replace").partition("image-svc: ")[2] for line in lines] == [
        line.decode(errors="replace") + "\n" for line in expected
    ]


def test_an_endless_line_is_cut() -> None:
    """A line without end does not fill the memory."""
    assert len(relayed("text", b"x" * (LINE_LIMIT + 1), b"y" * (LINE_LIMIT + 1))) == 2


def test_the_loop_calls_back_in_order() -> None:
    """Times come in their order, descriptors when they are readable, and the loop ends when told."""
    loop, calls = Loop(), list[str]()
    ours, theirs = socket.socketpair()
    loop.watch(ours.fileno(), lambda: calls.append(ours.recv(1).decode()))
    loop.after(0.03, lambda: (calls.append("late"), setattr(loop, "stopped", True))[0])  # type: ignore[func-returns-value]
    loop.after(0.01, lambda: calls.append("early"))
    theirs.send(b"r")
    loop.run()
    for end in (ours, theirs):
        end.close()

    assert calls == ["r", "early", "late"]


def test_a_directory_is_locked_once(tmp_path: Path) -> None:
    """A second lock of the same directory is refused by name, and possible again after the first is gone."""
    held = claims.lock([tmp_path])
    with pytest.raises(FailedPrecondition, match="is in use by another running stack"):
        claims.lock([tmp_path])
    os.close(held[0])
    again = claims.lock([tmp_path])

    os.close(again[0])


def test_the_address_is_a_link(config: Config) -> None:
    """grpc.address, with or without unix://, becomes a link to the frontend's socket; a dead socket is replaced."""
    link = claims.address(config)
    link.parent.mkdir()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(link))
    dead.close()
    claims.publish_address(config)
    claims.publish_address(config)

    assert os.readlink(link) == str(config.state / "cri-frontend/cri.sock")
    claims.withdraw_address(config)
    assert not os.path.lexists(link)


def test_what_is_not_ours_stays(config: Config) -> None:
    """A link to something else is not removed, and a file in the place of the socket is refused."""
    link = claims.address(config)
    link.parent.mkdir()
    link.symlink_to("/elsewhere")
    claims.withdraw_address(config)
    assert link.is_symlink()
    link.unlink()
    link.write_text("mine")
    with pytest.raises(FailedPrecondition, match="exists and is not a socket"):
        claims.refuse_live_sockets(config)


def test_a_live_address_is_refused(config: Config) -> None:
    """A socket that somebody serves is not replaced."""
    link = claims.address(config)
    link.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(link))
        server.listen()
        with pytest.raises(FailedPrecondition, match="is in use by another process"):
            claims.refuse_live_sockets(config)


def test_a_state_directory_can_be_too_deep(config: Config) -> None:
    """A path that would not fit a unix socket is refused, with the number of bytes."""
    claims.refuse_long_paths(config)
    deep = replace(config, state=Path("/" + "d" * 90) / "io.bulkhead")
    with pytest.raises(FailedPrecondition, match="bytes too long"):
        claims.refuse_long_paths(deep)


def test_a_busy_port_is_named(config: Config) -> None:
    """A metrics port that is taken names its key."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        busy = replace(config, bulkhead=Bulkhead(metrics_ports={"image-svc": port}))
        with pytest.raises(FailedPrecondition, match=rf"port {port} .* bulkhead.metrics_ports.image-svc"):
            claims.refuse_busy_ports(busy)


def test_the_pid_file_stays_out_of_containerds_directory(config: Config) -> None:
    """It lies beside io.bulkhead, and in it where the directory is containerd's."""
    assert claims.pid_file(Config()) == Path("/run/bulkhead/bulkhead.pid")
    assert claims.pid_file(config) == config.state.parent / "bulkhead.pid"
    (config.state.parent / "io.containerd.runtime.v2.task").mkdir(parents=True)
    assert claims.pid_file(config) == config.state / "bulkhead.pid"
    named = replace(config, state=Path("/run/containerd/io.bulkhead"))
    assert claims.pid_file(named) == Path("/run/containerd/io.bulkhead/bulkhead.pid")


def test_the_state_goes_when_no_pod_needs_it(config: Config) -> None:
    """Everything of the services goes, with the directories that held it."""
    for name in ("cri-frontend", "zygote", "config", "s", "bundles"):
        (config.state / name).mkdir(parents=True)
    (config.state / "config" / "image-svc.json").write_text("{}")

    assert pods.clear_state(config) == []
    assert not config.state.parent.exists()


def test_what_a_pod_left_stays(config: Config) -> None:
    """A bundle that was not removed is evidence for the next start."""
    (config.state / "bundles" / "c1").mkdir(parents=True)
    (config.state / "bundles" / "c1" / "config.json").write_text("{}")
    (config.state / "shm" / "p1").mkdir(parents=True)

    assert pods.clear_state(config) == [f"{config.state}/bundles is not empty"]
    assert (config.state / "bundles" / "c1" / "config.json").exists()
    assert not (config.state / "shm").exists()


def test_live_shims_are_told_from_dead_ones(config: Config) -> None:
    """A directory counts while somebody listens at one of its sockets; a dead one's sockets are removed."""
    directory = config.state / "s" / "0"
    directory.mkdir(parents=True)
    path = str(directory / "task")
    with socket.socket(socket.AF_UNIX) as shim:
        shim.bind(path)
        shim.listen()
        assert pods.live_shims(config) == [directory]

    assert not is_live(path)
    assert pods.live_shims(config) == []
    assert pods.clear_state(config) == []


def test_faces_of_a_stack_that_is_down(config: Config) -> None:
    """Every service is shown as down, and named as what is waited for."""
    assert {face.state for face in faces.all_faces(config)} == {"down"}
    assert "cri-frontend to listen" in faces.not_up(config)


def test_the_default_network(tmp_path: Path) -> None:
    """A node without configuration gets a bridge, one with any keeps it, and missing plugins are named."""
    plugins = tmp_path / "bin"
    plugins.mkdir()
    with pytest.raises(NotFound, match="bridge, host-local"):
        cni_default.write(tmp_path / "net.d", [str(plugins)])
    for name in ("bridge", "host-local", "portmap"):
        (plugins / name).touch(mode=0o755)
    path = cni_default.write(tmp_path / "net.d", [str(plugins)])
    assert path is not None
    written = json.loads(path.read_text())

    assert [plugin["type"] for plugin in written["plugins"]] == ["bridge", "portmap"]
    assert cni_default.write(tmp_path / "net.d", [str(plugins)]) is None
    cni_default.remove(path)
    assert not path.exists()


def test_a_network_that_was_changed_stays(tmp_path: Path) -> None:
    """A file that somebody has edited is theirs."""
    path = tmp_path / "a.conflist"
    path.write_text("{}")
    cni_default.remove(path)

    assert path.exists()
