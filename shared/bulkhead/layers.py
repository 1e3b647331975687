"""The client of the decryptor's layer socket: work on a layer by descriptors, and grants (keys.proto).

One connection is one piece of work. Requests and results are protobuf messages in memory files, since a layer for
hundreds of recipients carries more than a datagram holds.
"""

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from bulkhead import seqpacket
from bulkhead.errors import DeadlineExceeded, Internal, InvalidArgument, Unavailable, from_code
from bulkhead.proto import keys_pb2

#: Seconds beyond its own bounds after which the decryptor's silence counts.
GRACE = 5.0
#: Bytes of a request or result: a manifest has at most 4 MiB, and a layer's annotations are part of one.
MESSAGE_LIMIT = 4 * 1024 * 1024
#: The message of a sign of life, and the member of a request that says how many seconds may lie between two.
ALIVE = "alive"
#: Seconds between signs of life that may be asked for.
OFTEN, SELDOM = 0.01, 3600.0

_Message = TypeVar(
    "_Message", keys_pb2.DecryptRequest, keys_pb2.EncryptRequest, keys_pb2.RecipientsRequest, keys_pb2.DecryptResult,
    keys_pb2.EncryptResult,
)  # fmt: skip


def key_bound(key_timeout: float) -> float:
    """Return the seconds for finding the key of one layer, where a token or key provider may take `key_timeout`."""
    return key_timeout + 10.0


def image_bound(key_timeout: float) -> float:
    """Return the seconds for finding the keys of all layers of an image."""
    return max(60.0, key_bound(key_timeout))


class Silent(DeadlineExceeded):
    """The decryptor did not say in time what it had to say."""


class _Connection:
    """A connection whose end means something to the decryptor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


class Work(_Connection):
    """One piece of work in the decryptor; closing it before its result has come ends the work there."""

    def hang_up(self) -> None:
        """End the work there, and whoever waits for it here, in any thread; close() is still to be called."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def started(self, timeout: float) -> None:
        """Wait until a key was found and bytes begin to flow; the decryptor's refusal is raised as its error.

        Silent if it says neither.
        """
        _, fds = self._answer("started", timeout)
        _close(fds)

    def result(self, kind: type[_Message], timeout: float) -> _Message:
        """Wait for the end and return its result; until then nothing that came out of the sink counts."""
        until = time.monotonic() + timeout
        while (ended := self._ended(kind, max(until - time.monotonic(), 0.001))) is None:
            pass
        return ended

    def watched(self, kind: type[_Message], silence: float) -> _Message:
        """Wait for the end however long it takes, as result() does, while signs of life come as they were asked for.

        Silent if none came for `silence` seconds.
        """
        while True:
            try:
                ended = self._ended(kind, silence)
            except Silent as error:
                text = f"the decryptor gave no sign of life for {silence:g} s in the middle of a layer"
                raise Silent(text) from error
            if ended is not None:
                return ended

    def _ended(self, kind: type[_Message], timeout: float) -> _Message | None:
        """Return the result; None if the next message was a sign of life."""
        answer, fds = self._answer("done", timeout)
        try:
            if ALIVE in answer:
                return None
            if len(fds) != 1:
                raise Internal("the decryptor's result came without its memory file")
            return load(fds[0], kind)
        finally:
            _close(fds)

    def _answer(self, wanted: str, timeout: float) -> tuple[dict[str, Any], list[int]]:
        self._sock.settimeout(timeout)
        try:
            answer, fds = seqpacket.receive(self._sock)
        except TimeoutError as error:
            raise Silent(f"the decryptor did not say {wanted!r} within {timeout:g} s") from error
        except OSError as error:
            raise Unavailable(f"the decryptor ended in the middle of a layer: {error.strerror}") from error
        if answer is None:
            raise Unavailable("the decryptor ended in the middle of a layer")
        if isinstance(failure := answer.get("error"), dict):
            _close(fds)
            raise from_code(int(failure.get("code", 13)), str(failure.get("message", "no reason given")))
        if wanted not in answer and not (wanted == "done" and ALIVE in answer):
            _close(fds)
            raise Internal(f"the decryptor answered {sorted(answer)!r} instead of {wanted!r}")
        return answer, fds


def decrypt(
    path: str, request: keys_pb2.DecryptRequest, source: int, sink: int, timeout: float = 5.0, alive: float = 0.0
) -> Work:
    """Have the ciphertext at `source`, from its present offset, decrypted into `sink`; both may be closed here then.

    While it goes on there is to be a sign of life every `alive` seconds; 0 for none.
    """
    return _begin(path, "decrypt", request, (source, sink), timeout, alive)


def encrypt(
    path: str, request: keys_pb2.EncryptRequest, source: int, sink: int, timeout: float = 5.0, alive: float = 0.0
) -> Work:
    """Have the plain layer at `source` encrypted into `sink` for the request's recipients; `alive` as in decrypt()."""
    return _begin(path, "encrypt", request, (source, sink), timeout, alive)


def add_recipients(path: str, request: keys_pb2.RecipientsRequest, timeout: float = 60.0) -> keys_pb2.EncryptResult:
    """Have the key of an encrypted layer wrapped for more recipients; root's alone, or with a grant of root's."""
    with _begin(path, "recipients", request, (), timeout) as work:
        return work.result(keys_pb2.EncryptResult, timeout)


@dataclass(frozen=True)
class GrantedKey:
    """One file of a grant and what the decryptor found in it."""

    file: str
    kind: str
    fingerprint: str
    error: str


class Grant(_Connection):
    """Keys lent to the decryptor for as long as this object is open; closing it takes them back. Only root may."""

    def __init__(self, path: str, keys: Sequence[tuple[str, int, int | None]], timeout: float = 10.0) -> None:
        super().__init__(seqpacket.connect(path, timeout))
        fds: list[int] = []
        for _, key, password in keys:
            fds += [key] if password is None else [key, password]
        order = {"keys": [{"name": name, "password": password is not None} for name, _, password in keys]}
        work = Work(self._sock)
        try:
            seqpacket.send(self._sock, {"grant": order}, fds)
            answer, extra = work._answer("granted", timeout)
            _close(extra)
            granted = answer["granted"]
            #: What goes into Use.grant.
            self.id = str(granted["id"])
            self.keys = [GrantedKey(**{name: str(value) for name, value in key.items()}) for key in granted["keys"]]
        except BaseException:
            self._sock.close()
            raise


def dump(message: _Message) -> int:
    """Return a memory file (close-on-exec, the caller's to close) that holds the message."""
    data = message.SerializeToString()
    if len(data) > MESSAGE_LIMIT:
        raise InvalidArgument(f"a layer's annotations make a message of {len(data)} bytes, at most {MESSAGE_LIMIT}")
    fd = os.memfd_create("layer", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def load(fd: int, kind: type[_Message]) -> _Message:
    """Read a message back; InvalidArgument if the file is too large or holds something else."""
    try:
        # By position: the other side's offset is at the end.
        data = os.pread(fd, MESSAGE_LIMIT + 1, 0)
    except OSError as error:
        raise InvalidArgument(f"message file cannot be read: {error.strerror}") from error
    if len(data) > MESSAGE_LIMIT:
        raise InvalidArgument(f"message of more than {MESSAGE_LIMIT} bytes")
    message = kind()
    try:
        message.ParseFromString(data)
    except Exception as error:  # google.protobuf.message.DecodeError, or worse on hostile bytes
        raise InvalidArgument(f"message file holds no {kind.__name__}") from error
    return message


def _begin(path: str, verb: str, request: _Message, fds: Sequence[int], timeout: float, alive: float = 0.0) -> Work:
    message = dump(request)
    try:
        sock = seqpacket.connect(path, timeout)
        try:
            seqpacket.send(sock, {verb: {ALIVE: alive} if alive else {}}, (message, *fds))
        except OSError as error:
            sock.close()
            raise Unavailable(f"{path}: {error.strerror}") from error
        return Work(sock)
    finally:
        os.close(message)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
