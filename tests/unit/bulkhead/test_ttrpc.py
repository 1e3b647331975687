"""ttrpc: the frame codec, and the client against a scripted peer."""

import array
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import DeadlineExceeded, NotFound, ResourceExhausted, Unavailable
from bulkhead.proto.containerd.task_pb2 import StateRequest, StateResponse
from bulkhead.proto.containerd.ttrpc_pb2 import Request
from bulkhead.ttrpc import Client
from bulkhead.ttrpc_frames import FLAG_DESCRIPTOR, MESSAGE_LIMIT, REQUEST, RESPONSE, Decoder, Frame, encode, response
from support.descriptors import open_memory_files

frames = st.builds(Frame, st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300))


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 40), max_size=50))
def test_frames_survive_any_cutting(sent: list[Frame], cuts: list[int]) -> None:
    """What was encoded comes out again, whatever the lengths of the reads."""
    stream = b"".join(encode(f.stream, f.kind, f.payload or b"", f.flags) for f in sent)
    decoder, seen, at = Decoder(), [], 0
    for cut in cuts:
        seen += decoder.feed(stream[at : at + cut])
        at += cut
    seen += decoder.feed(stream[at:])

    assert seen == sent
    assert not decoder.pending


def test_several_frames_in_one_read() -> None:
    """One read may complete several frames and begin another."""
    decoder = Decoder()

    assert len(decoder.feed(encode(1, 2, b"a") + encode(3, 2, b"b") + encode(5, 2, b"c")[:5])) == 2
    assert decoder.pending


def test_an_oversized_frame_is_skipped_and_named() -> None:
    """A frame over the limit is reported without its payload and the next one is read."""
    decoder = Decoder()
    header = (MESSAGE_LIMIT + 1).to_bytes(4, "big") + (7).to_bytes(4, "big") + bytes([REQUEST, 0])
    seen = decoder.feed(header)
    for _ in range(64):
        seen += decoder.feed(bytes(MESSAGE_LIMIT // 64))
    seen += decoder.feed(b"\0" + encode(9, RESPONSE, b"next"))

    assert seen == [Frame(7, REQUEST, 0, None), Frame(9, RESPONSE, 0, b"next")]


def test_encode_refuses_what_the_peer_would() -> None:
    """A payload over the limit never leaves."""
    with pytest.raises(ResourceExhausted):
        encode(1, REQUEST, bytes(MESSAGE_LIMIT + 1))


Script = Callable[[socket.socket, Frame, Request], None]


class Peer:
    """A ttrpc server that hands every request to a script."""

    def __init__(self, path: Path, script: Script) -> None:
        self.path, self.script = path, script
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        decoder = Decoder()
        with connection:
            while data := connection.recv(65536):
                for frame in decoder.feed(data):
                    self.script(connection, frame, Request.FromString(frame.payload or b""))

    def close(self) -> None:
        self.thread.join(60)
        self.listener.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Script], str]]:
    peers: list[Peer] = []

    def start(script: Script) -> str:
        peers.append(Peer(tmp_path / "s", script))
        return str(tmp_path / "s")

    yield start
    for peer in peers:
        peer.close()


def state(pid: int) -> bytes:
    return StateResponse(pid=pid).SerializeToString()


def ask(client: Client, ident: str = "c", timeout: float = 5.0) -> StateResponse:
    return client.call("containerd.task.v2.Task", "State", StateRequest(id=ident), StateResponse, timeout)


def test_answers_find_their_callers_out_of_order(serve: Callable[[Script], str]) -> None:
    """Many threads share a connection, and answers in one write and in reverse order reach the right ones."""
    held: list[tuple[int, int]] = []

    def script(peer: socket.socket, frame: Frame, request: Request) -> None:
        held.append((frame.stream, int(StateRequest.FromString(request.payload).id)))
        if len(held) == 20:
            peer.sendall(b"".join(response(stream, state(n)) for stream, n in reversed(held)))

    client = Client(serve(script))
    answers: dict[int, int] = {}
    threads = [threading.Thread(target=lambda n=n: answers.__setitem__(n, ask(client, str(n)).pid)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    client.close()

    assert answers == {n: n for n in range(20)}
    assert [stream for stream, _ in held] == list(range(1, 41, 2))


def test_a_status_is_raised_as_its_error(serve: Callable[[Script], str]) -> None:
    """Code 5 of the peer is NotFound here, with its message."""
    client = Client(serve(lambda peer, frame, _: peer.sendall(response(frame.stream, b"", 5, "no such task"))))
    with pytest.raises(NotFound, match="no such task"):
        ask(client)
    client.close()


def test_the_deadline_is_sent_and_kept(serve: Callable[[Script], str]) -> None:
    """A call without an answer ends in time, and the connection goes on working."""
    seen: list[int] = []

    def script(peer: socket.socket, frame: Frame, request: Request) -> None:
        seen.append(request.timeout_nano)
        if len(seen) == 2:
            peer.sendall(response(1, state(1)) + response(frame.stream, state(2)))

    client = Client(serve(script))
    with pytest.raises(DeadlineExceeded):
        ask(client, timeout=0.05)

    assert ask(client).pid == 2
    assert seen == [50_000_000, 5_000_000_000]
    client.close()


def test_a_lost_peer_fails_what_is_in_flight(serve: Callable[[Script], str]) -> None:
    """When the peer hangs up, parked calls fail with Unavailable and the owner hears of it once."""
    lost = threading.Event()
    client = Client(
        serve(lambda peer, frame, _: peer.shutdown(socket.SHUT_RDWR) if frame.stream == 3 else None),
        on_disconnect=lost.set,
    )
    parked = client.submit("s", "Wait", StateRequest(), StateResponse)
    with pytest.raises(Unavailable):
        ask(client)

    assert isinstance(parked.exception(60), Unavailable)
    assert lost.wait(30)
    assert client.closed
    with pytest.raises(Unavailable):
        ask(client)


def test_descriptors_go_to_the_call_that_takes_them(serve: Callable[[Script], str]) -> None:
    """A flagged answer brings its descriptor to the caller's list; without a list it is closed."""

    def script(peer: socket.socket, frame: Frame, _: Request) -> None:
        if frame.stream > 3:
            peer.sendall(response(frame.stream, state(1)))
            return
        fd = os.memfd_create("passed")
        os.write(fd, b"%d" % frame.stream)
        data = response(frame.stream, state(1), flags=FLAG_DESCRIPTOR)
        peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os.close(fd)

    client = Client(serve(script))
    ask(client)
    fds: list[int] = []
    client.call("s", "m", StateRequest(), StateResponse, 5, fds=fds)
    # The peer answers in turn: after a third answer its own descriptors of the first two are closed.
    ask(client)

    assert [os.pread(fd, 9, 0) for fd in fds] == [b"3"]
    os.close(fds[0])
    assert open_memory_files("passed") == 0
    client.close()


def test_an_oversized_answer_becomes_an_error() -> None:
    """An answer that the protocol cannot carry is replaced by RESOURCE_EXHAUSTED."""
    (frame,) = Decoder().feed(response(1, bytes(MESSAGE_LIMIT)))

    assert frame.payload is not None
    assert len(frame.payload) < 200


def test_nobody_listens(tmp_path: Path) -> None:
    """A path without a server is Unavailable, and the message names it."""
    with pytest.raises(Unavailable, match=str(tmp_path)):
        Client(str(tmp_path / "none"))
