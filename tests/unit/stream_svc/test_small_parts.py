"""Terminal sizes, outcomes, addresses."""

import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument, Unavailable
from stream_svc import address
from stream_svc.outcome import Outcome, of_exec
from stream_svc.shim import Exit, Size
from stream_svc.terminal import Sizes


def test_sizes_one_after_the_other() -> None:
    """As Go's encoder writes them, cut anywhere."""
    sizes = Sizes()

    assert list(sizes.feed(b'{"Width":80,"Height":24}\n{"Width":10')) == [Size(80, 24)]
    assert list(sizes.feed(b'0,"Height":30}\n')) == [Size(100, 30)]
    assert list(sizes.feed(b'{"width":1,"height":2}')) == [Size(1, 2)]


@pytest.mark.parametrize(
    "data", [b"nonsense", b"[1]", b"{}", b'{"Width":0,"Height":1}', b'{"Width":"1","Height":1}', b'{"Width":70000}']
)
def test_what_is_no_size_is_dropped(data: bytes) -> None:
    """And what follows is understood."""
    sizes = Sizes()

    assert list(sizes.feed(data)) == []
    assert list(sizes.feed(b'{"Width":3,"Height":4}')) == [Size(3, 4)]


@given(st.lists(st.binary(max_size=50)))
def test_any_bytes_give_sizes(data: list[bytes]) -> None:
    """Nothing is raised, and nothing without end is kept."""
    sizes = Sizes()
    for piece in data:
        list(sizes.feed(piece))


def test_an_endless_object_is_not_kept() -> None:
    """What waits for its end has a limit."""
    sizes = Sizes()
    for _ in range(100):
        assert list(sizes.feed(b'{"Width":' + b"1" * 100)) == []

    assert len(sizes._text) < 10_000


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (Outcome(), {"metadata": {}, "status": "Success"}, b""),
        (
            Outcome(code=3),
            {
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": "command terminated with non-zero exit code: 3",
                "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
            },
            b"command terminated with non-zero exit code: 3",
        ),
        (
            Outcome(error="no such thing"),
            {
                "metadata": {},
                "status": "Failure",
                "reason": "InternalError",
                "code": 500,
                "message": "Internal error occurred: no such thing",
            },
            b"Internal error occurred: no such thing",
        ),
    ],
)
def test_outcomes(outcome: Outcome, status: dict[str, object], text: bytes) -> None:
    """A v1.Status from version 4 on, text before."""
    assert json.loads(outcome.encode(4)) == status
    assert json.loads(outcome.encode(5)) == status
    assert outcome.encode(3) == text


def test_exit_codes_are_a_byte() -> None:
    """Clients parse them as such; what is outside becomes 255."""
    assert of_exec(Exit(0)) == Outcome()
    assert of_exec(Exit(137, "OOM")) == Outcome(137, "OOM")
    assert of_exec(Exit(-1)) == Outcome(255)
    assert of_exec(Exit(256)) == Outcome(255)


def test_a_free_port_is_kept_over_a_restart(tmp_path: Path) -> None:
    """URLs handed out before it stay good."""
    memory = tmp_path / "port"
    with address.listen("127.0.0.1", "0", memory) as first:
        port = first.getsockname()[1]
        with address.listen("127.0.0.1", "0", memory) as other:
            assert other.getsockname()[1] != port
    memory.write_text(str(port))
    with address.listen("127.0.0.1", "0", memory) as second:
        assert second.getsockname()[1] == port


@pytest.mark.parametrize("content", ["", "nonsense", "-1", "70000", "1"])
def test_a_bad_memory_is_no_hindrance(tmp_path: Path, content: str) -> None:
    """Any free port does."""
    memory = tmp_path / "port"
    memory.write_text(content)
    with address.listen("127.0.0.1", "0", memory) as listener:
        assert listener.getsockname()[1] > 0


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """With address and port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
            address.listen("127.0.0.1", str(port), tmp_path / "port")


@pytest.mark.parametrize("port", ["", "x", "65536", "-1"])
def test_impossible_ports(tmp_path: Path, port: str) -> None:
    """Are refused with the option's name."""
    with pytest.raises(InvalidArgument, match="stream_server_port"):
        address.listen("127.0.0.1", port, tmp_path / "port")


def test_base_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configured address, or the node's where all are listened on."""
    monkeypatch.setattr(address, "node_address", lambda: "203.0.113.7")

    assert address.base_url("127.0.0.1", 80, tls=False) == "http://127.0.0.1:80"
    assert address.base_url("::1", 80, tls=True) == "https://[::1]:80"
    assert address.base_url("", 80, tls=False) == "http://203.0.113.7:80"
    assert address.base_url("0.0.0.0", 80, tls=False) == "http://203.0.113.7:80"
    assert address.base_url("::", 80, tls=False) == "http://203.0.113.7:80"
    assert address.base_url("node.example", 80, tls=False) == "http://node.example:80"


def test_node_address_is_an_address() -> None:
    """Also on a machine without a route."""
    assert address.node_address().count(".") == 3 or ":" in address.node_address()


def test_listening_everywhere(tmp_path: Path) -> None:
    """An empty address takes IPv4 connections too."""
    with address.listen("", "0", tmp_path / "port") as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=30).close()
