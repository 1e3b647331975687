"""WebSocket messages and the channels in them, two connections in memory."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_svc import websocket
from stream_svc.websocket import ChannelData, ChannelEnded, Channels, Closed, Connection, Piece, ProtocolError


def pair() -> tuple[Connection, Connection]:
    """Return client and server."""
    return Connection(client=True), Connection()


def deliver(source: Connection, target: Connection) -> list[Piece | Closed]:
    """Hand over everything that one end wants to send."""
    return list(target.receive_data(source.take()))


def test_messages_both_ways() -> None:
    """Binary and text messages arrive as bytes."""
    client, server = pair()
    client.send(b"\x00binary")
    client.send(b"0text", text=True)
    assert deliver(client, server) == [Piece(b"\x00binary", True), Piece(b"0text", True)]

    assert server.send(b"answer")
    assert deliver(server, client) == [Piece(b"answer", True)]


def test_a_long_message_comes_in_pieces() -> None:
    """A frame's bytes are handed out as they arrive."""
    client, server = pair()
    client.send(b"x" * 1000)
    sent = client.take()

    got = [event for start in range(0, len(sent), 300) for event in server.receive_data(sent[start : start + 300])]

    assert b"".join(piece.data for piece in got if isinstance(piece, Piece)) == b"x" * 1000
    assert [piece.last for piece in got if isinstance(piece, Piece)] == [False, False, False, True]


def test_pings_are_answered() -> None:
    """With their payload."""
    client, server = pair()
    client.ping(b"alive?")

    assert not deliver(client, server)
    assert server.take() == b"\x8a\x06alive?"


def test_closing_by_the_client() -> None:
    """The close is reported and answered, nothing is sent after it."""
    client, server = pair()
    client.close(1000, "done")

    assert deliver(client, server) == [Closed(1000)]
    assert deliver(server, client) == [Closed(1000)]
    assert not server.send(b"late")
    server.close()
    assert server.take() == b""
    assert not list(server.receive_data(b"more"))


def test_closing_by_the_server() -> None:
    """Data that the client had under way still arrives; pings find no answer any more."""
    client, server = pair()
    client.send(b"under way")
    client.ping()
    server.close(1001, "r" * 500)

    assert deliver(client, server) == [Piece(b"under way", True)]
    assert deliver(server, client) == [Closed(1001)]
    assert deliver(client, server) == [Closed(1000)]


@pytest.mark.parametrize("data", [b"\xff\x80\x00\x00\x00\x00", b"\x83\x80\x00\x00\x00\x00", b"\x89\xfe\x01\x00"])
def test_unreadable_frames(data: bytes) -> None:
    """Reserved bits, unknown opcodes and long control frames are protocol errors."""
    with pytest.raises(ProtocolError) as caught:
        list(Connection().receive_data(data))

    assert caught.value.code == websocket.PROTOCOL_ERROR


@given(st.lists(st.binary(max_size=80), max_size=6))
def test_any_bytes_give_events_or_a_protocol_error(pieces: list[bytes]) -> None:
    """Whatever arrives, nothing but ProtocolError is raised."""
    server, codec = Connection(), Channels(close_signal=True)
    try:
        for data in pieces:
            for event in server.receive_data(data):
                if isinstance(event, Piece):
                    codec.decode(event)
    except ProtocolError:
        return


def test_binary_channels_stream() -> None:
    """The first byte is the channel; later pieces belong to it, also empty ones in front."""
    codec = Channels()

    assert codec.decode(Piece(b"", False)) == []
    assert codec.decode(Piece(b"\x01ab", False)) == [ChannelData(1, b"ab")]
    assert codec.decode(Piece(b"cd", True)) == [ChannelData(1, b"cd")]
    assert codec.decode(Piece(b"\x02", True)) == []
    assert codec.decode(Piece(b"", True)) == []
    assert codec.encode(4, b"x") == b"\x04x"


def test_close_signal() -> None:
    """In v5, channel 255 ends another channel; elsewhere it is a channel like any other."""
    codec = Channels(close_signal=True)

    assert codec.decode(Piece(b"\xff", False)) == []
    assert codec.decode(Piece(b"\x00", True)) == [ChannelEnded(0)]
    assert Channels().decode(Piece(b"\xff\x00", True)) == [ChannelData(255, b"\x00")]
    with pytest.raises(ProtocolError, match="3 bytes"):
        codec.decode(Piece(b"\xff\x00\x01", True))


def test_base64_channels() -> None:
    """The channel is a digit, the rest base64, decoded once it is complete."""
    codec = Channels(base64=True)

    assert codec.encode(1, b"out") == b"1" + base64.b64encode(b"out")
    assert codec.decode(Piece(b"0aGV", False)) == []
    assert codec.decode(Piece(b"sbG8=", True)) == [ChannelData(0, b"hello")]
    assert codec.decode(Piece(b"0", True)) == []
    with pytest.raises(ProtocolError, match="not base64"):
        codec.decode(Piece(b"0!!!", True))


def test_a_message_that_must_be_whole_has_a_limit() -> None:
    """Otherwise one message could take any memory."""
    codec = Channels(base64=True)
    codec.decode(Piece(b"0" * websocket.WHOLE_LIMIT, False))

    with pytest.raises(ProtocolError) as caught:
        codec.decode(Piece(b"00", False))

    assert caught.value.code == websocket.TOO_BIG


@given(st.lists(st.binary(max_size=20), max_size=6), st.booleans(), st.booleans())
def test_any_message_gives_channels_or_a_protocol_error(data: list[bytes], coded: bool, closing: bool) -> None:
    """Whatever a message holds, nothing but ProtocolError is raised, and channels are bytes."""
    codec = Channels(base64=coded, close_signal=closing)
    try:
        for number, piece in enumerate(data):
            for said in codec.decode(Piece(piece, number % 2 == 1)):
                assert 0 <= said.channel < 256
    except ProtocolError:
        return
