"""SPDY framing, two connections in memory."""

import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_svc import spdy, spdy_headers
from stream_svc.spdy_events import (
    Data,
    Event,
    GoAway,
    ProtocolError,
    Status,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    StreamReset,
)


def deliver(source: spdy.Connection, target: spdy.Connection) -> list[Event]:
    """Hand over everything that one end wants to send."""
    return list(target.receive_data(source.take()))


def pair() -> tuple[spdy.Connection, spdy.Connection]:
    """Return client and server."""
    return spdy.Connection(client=True), spdy.Connection()


def control(kind: int, payload: bytes, flags: int = 0, version: int = 3) -> bytes:
    """Return a control frame."""
    return struct.pack(">HHI", 0x8000 | version, kind, flags << 24 | len(payload)) + payload


def test_a_stream_from_open_to_end() -> None:
    """Open, reply, data both ways, both ends."""
    client, server = pair()
    stream = client.open({"streamType": "stdin", "Port": "80"})
    assert deliver(client, server) == [StreamOpened(1, {"streamtype": "stdin", "port": "80"})]
    server.reply(stream)
    assert deliver(server, client) == [StreamReplied(1, {})]
    client.send_data(stream, b"up", fin=True)
    assert deliver(client, server) == [Data(1, b"up"), StreamEnded(1)]
    assert server.knows(stream)
    server.send_data(stream, b"down")
    server.send_data(stream, b"", fin=True)

    assert deliver(server, client) == [Data(1, b"down"), StreamEnded(1)]
    assert server.idle()
    assert client.idle()


def test_frames_may_arrive_byte_by_byte() -> None:
    """Go writes a frame's fields one by one."""
    client, server = pair()
    client.open({"a": "b"})
    client.send_data(1, b"xyz", fin=True)
    client.goaway()

    events = [event for byte in client.take() for event in server.receive_data(bytes([byte]))]

    assert events == [
        StreamOpened(1, {"a": "b"}),
        Data(1, b"x"),
        Data(1, b"y"),
        Data(1, b"z"),
        StreamEnded(1),
        GoAway(0),
    ]


def test_header_compression_survives_a_refused_stream() -> None:
    """The zlib state advances for a stream that is refused, so the next one's headers are readable."""
    client = spdy.Connection(client=True)
    server = spdy.Connection(stream_limit=1)
    for number in range(3):
        client.open({"streamtype": f"kind {number}", "x": "y" * 50})

    events = deliver(client, server)
    refused = deliver(server, client)
    server.reset(1)
    client.open({"streamtype": "last"})

    assert events == [StreamOpened(1, {"streamtype": "kind 0", "x": "y" * 50})]
    assert refused == [StreamReset(3, Status.REFUSED_STREAM), StreamReset(5, Status.REFUSED_STREAM)]
    assert deliver(client, server) == [StreamOpened(7, {"streamtype": "last"})]


def test_header_compression_survives_an_invalid_stream_id() -> None:
    """The same holds for a stream with an impossible id, which is reset with PROTOCOL_ERROR."""
    server, compressor = spdy.Connection(), spdy_headers.Compressor()
    frames = [
        control(1, struct.pack(">IIH", stream, 0, 0) + compressor.block({"n": str(stream)})) for stream in (5, 2, 3, 7)
    ]

    events = list(server.receive_data(b"".join(frames)))

    assert events == [StreamOpened(5, {"n": "5"}), StreamOpened(7, {"n": "7"})]
    client = spdy.Connection(client=True)
    client.open({})
    assert server.take() == control(3, struct.pack(">II", 2, 1)) + control(3, struct.pack(">II", 3, 1))


def test_pings_are_answered() -> None:
    """A client's ping comes back, an answer to ours does not."""
    server = spdy.Connection()

    assert not list(server.receive_data(control(6, struct.pack(">I", 7)) + control(6, struct.pack(">I", 8))))

    assert server.take() == control(6, struct.pack(">I", 7))


def test_what_has_no_meaning_is_ignored() -> None:
    """SETTINGS, WINDOW_UPDATE and unknown types pass without a trace."""
    server = spdy.Connection()
    frames = [control(4, struct.pack(">III", 1, 7, 65536)), control(9, struct.pack(">II", 1, 1000)), control(77, b"?")]

    assert not list(server.receive_data(b"".join(frames)))
    assert server.take() == b""


def test_data_for_streams_that_are_gone_is_dropped() -> None:
    """After a reset, after an end, or for a stream that never was."""
    client, server = pair()
    client.open({})
    client.open({})
    client.send_data(3, b"", fin=True)
    deliver(client, server)
    server.reset(1)
    frames = [struct.pack(">II", stream, 3) + b"abc" for stream in (1, 3, 99)]

    assert not list(server.receive_data(b"".join(frames)))


def test_headers_frames_keep_the_compression_in_step() -> None:
    """A HEADERS frame says nothing here, but may end its stream and moves the zlib state."""
    server, compressor = spdy.Connection(), spdy_headers.Compressor()
    frames = control(1, struct.pack(">IIH", 1, 0, 0) + compressor.block({"a": "b"}))
    frames += control(8, struct.pack(">I", 1) + compressor.block({"more": "of it"}), flags=1)
    frames += control(1, struct.pack(">IIH", 3, 0, 0) + compressor.block({"c": "d"}), flags=1)

    assert list(server.receive_data(frames)) == [
        StreamOpened(1, {"a": "b"}),
        StreamEnded(1),
        StreamOpened(3, {"c": "d"}),
        StreamEnded(3),
    ]


def test_sending_after_the_end_is_refused() -> None:
    """send_data says whether the stream takes data; a second end is not sent."""
    client, server = pair()
    client.open({})
    deliver(client, server)

    assert server.send_data(1, b"", fin=True)
    assert not server.send_data(1, b"late")
    assert not server.send_data(1, b"", fin=True)
    assert not server.send_data(99, b"")
    assert deliver(server, client) == [StreamEnded(1)]


def test_data_longer_than_a_frame_is_split() -> None:
    """A frame's length has 24 bits."""
    client, server = pair()
    client.open({})
    deliver(client, server)
    big = bytes(spdy.DATA_LIMIT + 5)

    client.send_data(1, big, fin=True)

    events = deliver(client, server)
    assert [len(event.data) for event in events if isinstance(event, Data)] == [spdy.DATA_LIMIT, 5]
    assert events[-1] == StreamEnded(1)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (control(1, b"", version=2), "version 2"),
        (control(1, b"short"), "type 1 has 5 bytes"),
        (control(3, b"short"), "type 3 has 5 bytes"),
        (control(6, b""), "type 6 has 0 bytes"),
        (control(7, b"123456789"), "type 7 has 9 bytes"),
        (control(1, struct.pack(">IIH", 1, 0, 0) + b"no zlib"), "does not decompress"),
        (control(1, b"")[:4] + struct.pack(">I", spdy.CONTROL_LIMIT + 1), "at most 65536"),
    ],
)
def test_what_no_peer_may_send(frame: bytes, message: str) -> None:
    """Each of these is a ProtocolError that names what is wrong."""
    with pytest.raises(ProtocolError, match=message):
        list(spdy.Connection().receive_data(frame))


def test_dictionary_is_the_drafts() -> None:
    """Its Adler-32 is the dictionary id that every SPDY/3 zlib stream carries."""
    assert (len(spdy_headers.DICTIONARY), zlib.adler32(spdy_headers.DICTIONARY)) == (1423, 0xE3C6A7C2)


def block(plain: bytes) -> bytes:
    """Compress a header block as a client would."""
    made = zlib.compressobj(zdict=spdy_headers.DICTIONARY)
    return made.compress(plain) + made.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("compressed", "message"),
    [
        (block(bytes(10_000_000)), "reaches 65536"),
        (block(struct.pack(">I", 101)), "101 headers"),
        (block(b"\0"), "ends within a length"),
        (block(struct.pack(">II", 1, 10) + b"short"), "ends within a string"),
        (zlib.compressobj(zdict=b"other").flush(), "does not decompress"),
    ],
)
def test_bad_header_blocks(compressed: bytes, message: str) -> None:
    """Bombs, wrong lengths and wrong dictionaries are BadHeaders."""
    with pytest.raises(spdy_headers.BadHeaders, match=message):
        spdy_headers.Decompressor().headers(compressed)


def test_a_finished_compression_is_refused() -> None:
    """A zlib stream that ends could never carry another block."""
    made = zlib.compressobj(zdict=spdy_headers.DICTIONARY)

    with pytest.raises(spdy_headers.BadHeaders, match="ends the compression"):
        spdy_headers.Decompressor().headers(made.compress(bytes(4)) + made.flush())


texts = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20)


@given(st.lists(st.dictionaries(texts.map(str.lower), texts, max_size=5), max_size=5))
def test_headers_survive_compression(blocks: list[dict[str, str]]) -> None:
    """What one end compresses the other reads, block after block."""
    compressor, decompressor = spdy_headers.Compressor(), spdy_headers.Decompressor()
    for headers in blocks:
        plain = {name.encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
        wire = {name.decode(): value.decode() for name, value in plain.items() if _ascii(name) and _ascii(value)}

        assert decompressor.headers(compressor.block(wire)) == wire


def _ascii(text: bytes) -> bool:
    return text.isascii()


pieces = st.lists(st.binary(max_size=40), max_size=6)


@given(st.binary(max_size=300), pieces)
def test_any_bytes_give_events_or_a_protocol_error(start: bytes, more: list[bytes]) -> None:
    """Whatever arrives, in whatever pieces, nothing but ProtocolError is raised."""
    server = spdy.Connection()
    try:
        for piece in [start, *more]:
            list(server.receive_data(piece))
    except ProtocolError:
        return


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 255), st.binary(max_size=30), st.dictionaries(texts, texts)),
        max_size=8,
    )
)
def test_any_frames_give_events_or_a_protocol_error(frames: list[tuple[int, int, bytes, dict[str, str]]]) -> None:
    """Well-formed frames with odd content, some with readable headers, raise nothing but ProtocolError."""
    server, compressor = spdy.Connection(), spdy_headers.Compressor()
    try:
        for kind, flags, payload, headers in frames:
            list(server.receive_data(control(kind, payload + compressor.block(headers), flags)))
            server.take()
    except ProtocolError:
        return


@given(st.lists(st.integers(1, 60), max_size=30), st.lists(st.binary(max_size=50), max_size=10))
def test_any_cutting_of_the_bytes_gives_the_same_data(cuts: list[int], messages: list[bytes]) -> None:
    """Data does not depend on how the bytes were cut on the way."""
    client, server = pair()
    client.open({"a": "b"})
    for message in messages:
        client.send_data(1, message)
    sent, got, offset = client.take(), b"", 0
    for cut in itertools.chain(cuts, itertools.repeat(1000)):
        for event in server.receive_data(sent[offset : offset + cut]):
            got += event.data if isinstance(event, Data) else b""
        offset += cut
        if offset >= len(sent):
            break

    assert got == b"".join(messages)
