"""A layer's bytes from one descriptor through the cipher into another, hashed on the way in threads of their own.

Reading, AES-CTR and writing are the calling thread's; MACs and digests, which cost three times as much, run beside
it (OpenSSL gives up the interpreter lock). Chunks and queues are bounded: 2 MiB a layer, whatever its size.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import math
import os
import queue
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from bulkhead.errors import Cancelled, DataLoss, DeadlineExceeded, InvalidArgument
from bulkhead.layers import ALIVE
from decryptor.options import CIPHER, Private, Public

CHUNK = 256 * 1024
_QUEUED = 3
_PIPE_BYTES = 1024 * 1024
#: Seconds without a byte moving after which a layer is given up.
IDLE = 300.0
_SIGN = json.dumps({ALIVE: {}}).encode()


@dataclass(frozen=True)
class Ends:
    """Where bytes come from and go to, and the connection, with a time-out, whose hang-up ends the work."""

    source: int
    sink: int
    control: socket.socket
    #: Seconds between the signs of life that the caller asked for; 0 for none.
    alive: float = 0.0


def decrypt(ends: Ends, private: Private, public: Public, *, diff_id: str = "", idle: float = IDLE) -> tuple[str, int]:
    """Decrypt from source to sink; return digest and size of the plain layer once MAC and digest are right.

    The private digest may be the diff id instead, which is the caller's to check: skopeo wraps the digest of what it
    read, before it compressed it. DataLoss if neither fits, or the MAC does not: what went into the sink is then
    worthless. Cancelled and DeadlineExceeded as in _Mover.
    """
    assert public.cipher == CIPHER
    mac, plain = hmac.new(private.key, digestmod=hashlib.sha256), hashlib.sha256()
    with _Tap(mac.update) as before, _Tap(plain.update) as after:
        cipher = Cipher(algorithms.AES(private.key), modes.CTR(private.nonce)).decryptor()
        size = _Mover(ends, idle).move(cipher, (before,), (after,))
    if not hmac.compare_digest(mac.digest(), public.hmac):
        raise DataLoss(f"the MAC over the layer's {size} bytes is not the one in its annotations")
    digest = f"sha256:{plain.hexdigest()}"
    if private.digest not in ("", digest, diff_id):
        raise DataLoss(f"the decrypted layer is {digest}, and its key was made for {private.digest}")
    return digest, size


@dataclass(frozen=True)
class Sealed:
    """What encrypting a layer came to: its MAC, and digests of both sides."""

    mac: bytes
    plain_digest: str
    digest: str
    size: int


def encrypt(ends: Ends, private: Private, idle: float = IDLE) -> Sealed:
    """Encrypt from source to sink; Cancelled and DeadlineExceeded as in _Mover."""
    mac, plain, sealed = hmac.new(private.key, digestmod=hashlib.sha256), hashlib.sha256(), hashlib.sha256()
    with _Tap(plain.update) as before, _Tap(mac.update) as authenticated, _Tap(sealed.update) as hashed:
        cipher = Cipher(algorithms.AES(private.key), modes.CTR(private.nonce)).encryptor()
        size = _Mover(ends, idle).move(cipher, (before,), (authenticated, hashed))
    return Sealed(mac.digest(), f"sha256:{plain.hexdigest()}", f"sha256:{sealed.hexdigest()}", size)


class _Tap:
    """Feeds chunks to a hash in a thread; leaving the block waits until all are in it."""

    def __init__(self, update: Callable[[bytes], None]) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._update = update
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)

    def __enter__(self) -> "_Tap":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def feed(self, chunk: bytes) -> None:
        """Hand over a chunk; waits while the hash is behind."""
        self._queue.put(chunk)

    def _run(self) -> None:
        while (chunk := self._queue.get()) is not None:
            self._update(chunk)


class _Mover:
    """Moves bytes until the source ends.

    Cancelled if the caller hangs up or the sink is closed, DeadlineExceeded if nothing moves for `idle` seconds,
    InvalidArgument for descriptors that cannot be used.
    """

    def __init__(self, ends: Ends, idle: float) -> None:
        self._ends, self._idle = ends, idle
        self._sign_due = time.monotonic() + ends.alive if ends.alive else math.inf
        for fd in (ends.source, ends.sink):
            _prepare(fd)

    def move(self, cipher: CipherContext, before: Sequence[_Tap], after: Sequence[_Tap]) -> int:
        """Return how many bytes went through."""
        size = 0
        try:
            while chunk := self._read():
                for tap in before:
                    tap.feed(chunk)
                size += len(chunk)
                turned = cipher.update(chunk)
                for tap in after:
                    tap.feed(turned)
                self._write(turned)
                self._sign()
        except BrokenPipeError as error:
            raise Cancelled("the layer's reader went away") from error
        except OSError as error:
            raise InvalidArgument(f"the layer's descriptors cannot be used: {error.strerror}") from error
        return size

    def _read(self) -> bytes:
        while True:
            self._wait(self._ends.source, select.POLLIN)
            with contextlib.suppress(BlockingIOError):
                return os.read(self._ends.source, CHUNK)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._ends.sink, left) :]
            except BlockingIOError:
                self._wait(self._ends.sink, select.POLLOUT)

    def _wait(self, fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        # Nothing is ever said on the connection while the layer runs, so that any event there is its end.
        poll.register(self._ends.control.fileno(), select.POLLIN | select.POLLRDHUP)
        end = time.monotonic() + self._idle
        while not (ready := dict(poll.poll(max(min(end, self._sign_due) - time.monotonic(), 0) * 1000))):
            if time.monotonic() >= end:
                raise DeadlineExceeded(f"no byte of the layer moved for {self._idle:g} s")
            self._sign()
        if self._ends.control.fileno() in ready:
            raise Cancelled("the caller hung up in the middle of the layer")

    def _sign(self) -> None:
        """Say that this goes on, when it is time to; to a caller who has not read the earlier signs, nothing."""
        if (now := time.monotonic()) < self._sign_due:
            return
        self._sign_due = now + self._ends.alive
        # Beneath its time-out the connection never blocks. A caller that is gone is found out by the next wait.
        with contextlib.suppress(OSError):
            os.write(self._ends.control.fileno(), _SIGN)


def _prepare(fd: int) -> None:
    """Make a pipe or socket non-blocking and a pipe large; what else there is blocks at most on a disk."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        os.set_blocking(fd, False)
    elif not stat.S_ISREG(mode):
        raise InvalidArgument("the layer's descriptors are to be pipes, sockets or regular files")
    if stat.S_ISFIFO(mode):
        # A user may have 64 MiB in large pipes; beyond that they stay as they are.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
