"""The trunk's frames: whatever comes in whatever pieces, nothing is lost, kept or mixed up."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from sandbox_svc.nri import mux

FRAMES = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40)), max_size=6)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


def joined(found: list[tuple[int, bytes]]) -> dict[int, bytes]:
    streams: dict[int, bytes] = {}
    for connection, part in found:
        streams[connection] = streams.get(connection, b"") + part
    return streams


@given(sent=FRAMES, cuts=st.lists(st.integers(0, 300), max_size=10))
def test_every_stream_comes_out_whole(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    """However the reads fall, each connection gets its bytes in order, and the end of a frame is known."""
    data = b"".join(struct.pack(">II", connection, len(payload)) + payload for connection, payload in sent)
    decoder, found = mux.Decoder(), list[tuple[int, bytes]]()

    for piece in pieces(data, cuts):
        found += decoder.feed(piece)

    assert joined(found) == joined([item for item in sent if item[1]])
    assert not decoder.pending


@given(junk=st.binary(max_size=200))
def test_junk_is_refused_or_passed_and_never_kept(junk: bytes) -> None:
    """Anything is either frames of at most the limit, or refused; the decoder itself keeps no payload."""
    decoder = mux.Decoder()
    try:
        found = decoder.feed(junk)
    except InvalidArgument:
        return

    assert sum(len(part) for _, part in found) <= len(junk)
    assert len(decoder._header) < 8


@given(message=st.binary(max_size=9000), connection=st.sampled_from([1, 2]))
def test_a_message_fits_the_go_modules_reader(message: bytes, connection: int) -> None:
    """The first frame of a message has at most 4096 bytes, and all the rest is one more frame."""
    data = mux.encode(connection, message)
    sizes, at = [], 0
    while at < len(data):
        sizes.append(struct.unpack_from(">II", data, at)[1])
        at += 8 + sizes[-1]

    assert sizes[0] == min(len(message), 4096)
    assert sizes[1:] == ([len(message) - 4096] if len(message) > 4096 else [])
    assert joined(mux.Decoder().feed(data)) == ({connection: message} if message else {})


def test_a_frame_that_cannot_be_one_ends_it() -> None:
    """A frame of more than a ttrpc message is refused as soon as its header is there."""
    mux.Decoder().feed(struct.pack(">II", 1, mux.PAYLOAD_LIMIT))

    with pytest.raises(InvalidArgument, match="at most 4194314"):
        mux.Decoder().feed(struct.pack(">II", 1, mux.PAYLOAD_LIMIT + 1))
