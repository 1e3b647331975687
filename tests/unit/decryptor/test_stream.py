"""A layer's bytes: what is encrypted comes out as it was, and what is not what it should be is never called good."""

import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import Cancelled, DataLoss, DeadlineExceeded, InvalidArgument
from decryptor import options, stream
from decryptor.options import Private, Public
from support.keeper import contents, digest_of, memory

KEY, NONCE = b"k" * 32, b"n" * 16


@contextmanager
def ends(source: int, sink: int) -> Iterator[tuple[stream.Ends, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)  # as that of a session
    with ours, theirs:
        yield stream.Ends(source, sink, ours), theirs


def seal(plain: bytes, nonce: bytes = NONCE) -> tuple[bytes, Public]:
    with memory(plain) as source, memory() as sink, ends(source, sink) as (both, _):
        sealed = stream.encrypt(both, Private(KEY, nonce, ""))
        cipher = contents(sink)
    assert (sealed.plain_digest, sealed.digest, sealed.size) == (digest_of(plain), digest_of(cipher), len(plain))
    return cipher, Public(options.CIPHER, sealed.mac, {})


def unseal(cipher: bytes, public: Public, digest: str = "", diff_id: str = "") -> bytes:
    with memory(cipher) as source, memory() as sink, ends(source, sink) as (both, _):
        found = stream.decrypt(both, Private(KEY, NONCE, digest), public, diff_id=diff_id)
        plain = contents(sink)
    assert found == (digest_of(plain), len(plain))
    return plain


def test_the_cipher_is_the_published_one() -> None:
    """AES-256-CTR with the nonce as the first counter block: SP 800-38A, F.5.5."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    with memory(plain) as source, memory() as sink, ends(source, sink) as (both, _):
        stream.encrypt(both, Private(key, counter, ""))

        assert contents(sink).hex() == "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"


@pytest.mark.parametrize("size", [0, 1, 16, stream.CHUNK - 1, stream.CHUNK, stream.CHUNK + 1, 5 * stream.CHUNK + 7])
def test_there_and_back(size: int) -> None:
    """A layer of any size, an empty one included, comes out as it went in."""
    plain = os.urandom(size)

    assert unseal(*seal(plain), digest_of(plain)) == plain


def test_the_diff_id_may_stand_for_the_digest() -> None:
    """A private digest that is the diff id is right; one that is neither is DataLoss."""
    cipher, public = seal(b"layer")
    other = digest_of(b"other")

    assert unseal(cipher, public, other, diff_id=other) == b"layer"
    with pytest.raises(DataLoss, match=f"its key was made for {other}"):
        unseal(cipher, public, other, diff_id=digest_of(b"third"))


@given(st.binary(min_size=1, max_size=200), st.integers(min_value=0), st.integers(1, 255))
@settings(deadline=None)
def test_a_changed_byte_is_found(plain: bytes, where: int, change: int) -> None:
    """Whatever byte of the ciphertext is another, the MAC does not fit."""
    cipher, public = seal(plain)
    changed = bytearray(cipher)
    changed[where % len(changed)] ^= change
    with pytest.raises(DataLoss, match="MAC"):
        unseal(bytes(changed), public)


@pytest.mark.parametrize("cut", [0, 1, stream.CHUNK])
def test_a_cut_layer_is_found(cut: int) -> None:
    """A layer that ends early, or has bytes too many, does not fit its MAC."""
    cipher, public = seal(b"x" * (stream.CHUNK + 10))
    for wrong in (cipher[:cut], cipher + b"x"):
        with pytest.raises(DataLoss, match="MAC"):
            unseal(wrong, public)


def test_pipes_flow() -> None:
    """Between two pipes, a slow writer and a slow reader, every byte arrives; the pipe's end follows the verdict."""
    plain = os.urandom(1_500_000)
    cipher, public = seal(plain)
    (from_read, from_write), (to_read, to_write) = os.pipe(), os.pipe()
    got = bytearray()

    def feed() -> None:
        with os.fdopen(from_write, "wb") as pipe:
            for begin in range(0, len(cipher), 100_000):
                pipe.write(cipher[begin : begin + 100_000])

    def drain() -> None:
        with os.fdopen(to_read, "rb") as pipe:
            while piece := pipe.read(70_000):
                got.extend(piece)

    threads = [threading.Thread(target=work) for work in (feed, drain)]
    for thread in threads:
        thread.start()
    with ends(from_read, to_write) as (both, _):
        assert stream.decrypt(both, Private(KEY, NONCE, ""), public) == (digest_of(plain), len(plain))
    os.close(from_read)
    os.close(to_write)
    for thread in threads:
        thread.join(60)

    assert bytes(got) == plain


def test_a_caller_that_hangs_up_ends_the_work() -> None:
    """Whether reading or writing waits, the end of the connection is the end of the layer."""
    _, public = seal(b"")
    read, write = os.pipe()
    with memory() as sink, ends(read, sink) as (both, theirs):
        threading.Timer(0.05, theirs.shutdown, (socket.SHUT_RDWR,)).start()
        with pytest.raises(Cancelled, match="hung up"):
            stream.decrypt(both, Private(KEY, NONCE, ""), public, idle=20)
    os.close(read)
    os.close(write)


def test_a_reader_that_goes_away_ends_the_work() -> None:
    """A closed sink is Cancelled, not an error of the decryptor's."""
    read, write = os.pipe()
    os.close(read)
    with memory(b"x" * 100_000) as source, ends(source, write) as (both, _), pytest.raises(Cancelled, match="reader"):
        stream.encrypt(both, Private(KEY, NONCE, ""))
    os.close(write)


@pytest.mark.parametrize("full", [False, True])
def test_what_does_not_move_is_given_up(full: bool) -> None:
    """A source without bytes and a sink without room both end after the time allowed."""
    read, write = os.pipe()
    with memory(b"x" * 4_000_000) as file, memory() as sink:
        source, target = (file, write) if full else (read, sink)
        with ends(source, target) as (both, _), pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            stream.encrypt(both, Private(KEY, NONCE, ""), idle=0.05)
    os.close(read)
    os.close(write)


def test_odd_descriptors_are_refused() -> None:
    """A directory or a device is no source."""
    null = os.open("/dev/zero", os.O_RDONLY)
    with memory() as sink, ends(null, sink) as (both, _), pytest.raises(InvalidArgument, match="regular files"):
        stream.encrypt(both, Private(KEY, NONCE, ""))
    os.close(null)


def test_signs_of_life_come_while_bytes_are_waited_for() -> None:
    """Whoever asks for signs hears them while source or sink stand still; whoever does not hears nothing."""
    told: dict[float, list[bytes]] = {}
    for alive in (0.02, 0.0):
        read, write = os.pipe()
        with memory() as sink, ends(read, sink) as (both, caller):
            asked = dataclasses.replace(both, alive=alive)
            with pytest.raises(DeadlineExceeded, match="no byte of the layer moved"):
                stream.encrypt(asked, Private(KEY, NONCE, ""), idle=0.3)
            caller.setblocking(False)
            told[alive] = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    told[alive].append(caller.recv(100))
        os.close(read)
        os.close(write)

    assert 3 <= len(told[0.02]) <= 16
    assert set(told[0.02]) == {b'{"alive": {}}'}
    assert told[0.0] == []


def test_a_caller_who_reads_no_signs_stops_nothing() -> None:
    """Signs that find no room are dropped: the layer comes out all the same."""
    plain = os.urandom(40 * stream.CHUNK)
    with memory(plain) as source, memory() as sink, ends(source, sink) as (both, _):
        both.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        stream.encrypt(dataclasses.replace(both, alive=1e-9), Private(KEY, NONCE, ""))

        assert len(contents(sink)) == len(plain)
