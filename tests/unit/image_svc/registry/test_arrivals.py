"""What arrives on a connection is read as h11's own buffer has it read, and a body is not copied."""

from collections.abc import Callable
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from hypothesis import given
from hypothesis import strategies as st

from image_svc.registry import connections
from image_svc.registry.arrivals import Arrivals

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"

_STEPS = st.one_of(
    st.binary(max_size=40).map(lambda piece: lambda buffer: buffer.__iadd__(piece)),
    st.binary(max_size=40).map(lambda piece: lambda buffer: buffer.__iadd__(bytearray(piece))),
    st.sampled_from([b"\r\n", b"\n", b"a: b\r\n\r\n", b"\n\r\n", b"1f\r\n"]).map(
        lambda piece: lambda buffer: buffer.__iadd__(piece)
    ),
    st.integers(0, 60).map(lambda count: lambda buffer: buffer.maybe_extract_at_most(count)),
    st.just(lambda buffer: buffer.maybe_extract_next_line()),
    st.just(lambda buffer: buffer.maybe_extract_lines()),
    st.just(lambda buffer: buffer.is_next_line_obviously_invalid_request_line()),
)


@given(st.lists(_STEPS, max_size=30))
def test_like_the_one_of_h11(steps: list[Callable[[ReceiveBuffer], Any]]) -> None:
    """Whatever arrives in whatever pieces, and however it is read, gives the same bytes."""
    ours, theirs = Arrivals(), ReceiveBuffer()
    for step in steps:
        found, expected = step(ours), step(theirs)
        if expected is not theirs:
            assert found == expected
        assert (bytes(ours), len(ours), bool(ours)) == (bytes(theirs), len(theirs), bool(theirs))


def test_a_body_is_passed_on_as_it_came() -> None:
    """The pieces of a body, but for one that came with the head, are the very objects that were read."""
    assert connections.READ_TIMEOUT  # whoever imports it has the buffer in place
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "registry")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(_HEAD + b"a" * 100_000)
    assert isinstance(connection.next_event(), h11.Response)
    first = connection.next_event()
    assert isinstance(first, h11.Data)
    assert len(first.data) == 100_000

    for piece in (b"b" * 150_000, b"c" * 50_000):
        connection.receive_data(piece)
        event = connection.next_event()
        assert isinstance(event, h11.Data)
        assert event.data is piece
    assert isinstance(connection.next_event(), h11.EndOfMessage)


def test_a_connection_is_used_again() -> None:
    """After a body that was passed on, the head of the next answer is read like the first."""
    connection = h11.Connection(h11.CLIENT)
    for _ in range(3):
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "registry")]))
        connection.send(h11.EndOfMessage())
        for piece in (_HEAD[:20], _HEAD[20:], b"b" * 300_000):
            connection.receive_data(piece)
        assert isinstance(connection.next_event(), h11.Response)
        assert isinstance(connection.next_event(), h11.Data)
        assert isinstance(connection.next_event(), h11.EndOfMessage)
        connection.start_next_cycle()
