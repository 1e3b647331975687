"""Messages between processes that do not trust each other: whatever comes, it is a message or InvalidArgument."""

import os
import socket
from collections.abc import Iterator

import pytest

from bulkhead import seqpacket
from bulkhead.errors import InvalidArgument
from support.descriptors import open_memory_files


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return two connected sockets."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        yield here, there


def test_message_and_descriptor(ends: tuple[socket.socket, socket.socket]) -> None:
    """An object arrives with its descriptors, the end as nothing."""
    seqpacket.send(ends[0], {"a": 1}, [0])
    message, fds = seqpacket.receive(ends[1])
    assert (message, len(fds)) == ({"a": 1}, 1)
    assert not os.get_inheritable(fds[0])
    os.close(fds[0])
    ends[0].shutdown(socket.SHUT_WR)
    assert seqpacket.receive(ends[1]) == (None, [])


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b"\xff", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'{"a": ' + b"9" * 10_000 + b"}", b" " * 70_000],
)
def test_nonsense(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    """What is no JSON object, too deep, too large a number or too long raises, and no descriptor stays open."""
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    passed = os.memfd_create("nonsense")
    socket.send_fds(ends[0], [data], [passed])
    os.close(passed)

    with pytest.raises(InvalidArgument):
        seqpacket.receive(ends[1])

    assert open_memory_files("nonsense") == 0
