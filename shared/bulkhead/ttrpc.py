"""A ttrpc client for many threads over one connection (the frames: bulkhead.ttrpc_frames)."""

import array
import contextlib
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from bulkhead.errors import BulkheadError, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, from_code
from bulkhead.proto.containerd.ttrpc_pb2 import Response
from bulkhead.ttrpc_frames import FLAG_DESCRIPTOR, MESSAGE_LIMIT, RESPONSE, Decoder, Frame, request

_READ_SIZE = 64 * 1024

M = TypeVar("M", bound=Message)


class _Call:
    """A call in flight: who waits for it, and where its descriptors go."""

    __slots__ = ("fds", "future")

    def __init__(self, fds: list[int] | None) -> None:
        self.future: Future[bytes] = Future()
        self.fds = fds


class Client:
    """One connection that any number of threads may call through at once.

    A reader thread hands the answers out. When the connection ends, for whatever reason, every call in flight fails
    with Unavailable, `on_disconnect` is called once from the reader thread, and the client stays closed: the owner
    makes a new one.
    """

    def __init__(
        self,
        path: str,
        *,
        connect_timeout: float = 5.0,
        send_timeout: float = 10.0,
        metadata: Mapping[str, str] | None = None,
        on_disconnect: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self._metadata = dict(metadata or {})
        self._on_disconnect = on_disconnect
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._next = 1
        self._closed = False
        self._socket = _connect(path, connect_timeout, send_timeout)
        self._reader = threading.Thread(target=self._read, name=f"ttrpc {path}", daemon=True)
        self._reader.start()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._closed

    def call(
        self,
        service: str,
        method: str,
        message: Message,
        response_type: type[M],
        timeout: float | None = 30.0,
        *,
        metadata: Mapping[str, str] | None = None,
        fds: list[int] | None = None,
    ) -> M:
        """Call a method and return its answer; the peer's status is raised as the error of its code.

        timeout is in seconds and sent along; None waits for ever. A descriptor that comes with the answer is appended
        to `fds` (the caller's to close), or closed if no list was given.
        """
        stream, call = self._begin(service, method, message, timeout, metadata, fds)
        try:
            raw = call.future.result(timeout)
        except FutureTimeout as error:
            if self._forget(stream) is not None:
                raise DeadlineExceeded(f"{method}: no answer from {self.path} within {timeout:g} s") from error
            raw = call.future.result()  # it came in the meantime, perhaps with a descriptor
        return parse_answer(raw, response_type, method)

    def submit(
        self,
        service: str,
        method: str,
        message: Message,
        response_type: type[M],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> "Future[M]":
        """Call a method without waiting or deadline; callbacks of the future run in the reader thread."""
        _, call = self._begin(service, method, message, None, metadata, None)
        answer: Future[M] = Future()

        def settle(done: "Future[bytes]") -> None:
            try:
                answer.set_result(parse_answer(done.result(), response_type, method))
            except BulkheadError as error:
                answer.set_exception(error)

        call.future.add_done_callback(settle)
        return answer

    def close(self) -> None:
        """End the connection; calls in flight fail with Unavailable. A second close does nothing."""
        self._shutdown()
        if threading.current_thread() is not self._reader:
            self._reader.join(5.0)

    def _begin(
        self,
        service: str,
        method: str,
        message: Message,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
        fds: list[int] | None,
    ) -> tuple[int, _Call]:
        call, payload = _Call(fds), message.SerializeToString()
        merged = {**self._metadata, **(metadata or {})}
        # The stream ids must rise on the wire, so the number is drawn under the lock that orders the writes.
        with self._send_lock:
            with self._lock:
                if self._closed:
                    raise Unavailable(f"{self.path}: the connection is closed")
                stream = self._next
                frame = request(stream, service, method, payload, timeout, merged)
                self._next += 2
                self._calls[stream] = call
            try:
                self._socket.sendall(frame)
            except OSError as error:
                self._forget(stream)
                # Half a frame may have left: nothing on this connection can be trusted any more.
                self._shutdown()
                raise Unavailable(f"{self.path}: {error.strerror or error}") from error
        return stream, call

    def _shutdown(self) -> None:
        with contextlib.suppress(OSError):  # the peer may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def _forget(self, stream: int) -> _Call | None:
        with self._lock:
            return self._calls.pop(stream, None)

    def _read(self) -> None:
        decoder, fds = Decoder(), deque[int]()
        try:
            while data := self._receive(fds):
                for frame in decoder.feed(data):
                    self._answer(frame, fds)
        except OSError:
            pass  # the same end as an orderly one: calls in flight are told below
        finally:
            for fd in fds:
                os.close(fd)
            self._end()

    def _receive(self, fds: deque[int]) -> bytes:
        space = socket.CMSG_SPACE(16 * 4)
        data, ancillary, _, _ = self._socket.recvmsg(_READ_SIZE, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.extend(array.array("i", payload[: len(payload) - len(payload) % 4]))
        return data

    def _answer(self, frame: Frame, fds: deque[int]) -> None:
        fd = fds.popleft() if frame.flags & FLAG_DESCRIPTOR and fds else -1
        call = self._forget(frame.stream) if frame.kind == RESPONSE else None
        if fd >= 0 and (call is None or call.fds is None):
            os.close(fd)
        elif fd >= 0 and call is not None and call.fds is not None:
            call.fds.append(fd)
        if call is None:
            return
        try:
            call.future.set_result(payload_of(frame))
        except BulkheadError as error:
            call.future.set_exception(error)

    def _end(self) -> None:
        self._shutdown()
        with self._lock:
            self._closed = True
            calls = list(self._calls.values())
            self._calls.clear()
        with self._send_lock:  # no thread may be writing when the number of the descriptor becomes free
            self._socket.close()
        for call in calls:
            call.future.set_exception(Unavailable(f"{self.path}: the connection ended before the answer came"))
        if self._on_disconnect is not None:
            self._on_disconnect()


def _connect(path: str, timeout: float, send_timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
        sock.settimeout(None)
        # A peer that stopped reading must not hold the callers' lock for ever.
        timeval = struct.pack("ll", int(send_timeout), int(send_timeout % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    except OSError as error:
        sock.close()
        raise Unavailable(f"{path}: {error.strerror or error}") from error
    return sock


def payload_of(frame: Frame) -> bytes:
    """Return what an answer carries, still serialised; the peer's status is raised as the error of its code."""
    if frame.payload is None:
        raise ResourceExhausted(f"ttrpc answer longer than {MESSAGE_LIMIT} bytes")
    try:
        answer = Response.FromString(frame.payload)
    except DecodeError as error:
        raise Internal(f"ttrpc answer is not a Response: {error}") from error
    if answer.status.code:
        raise from_code(answer.status.code, answer.status.message)
    return answer.payload


def parse_answer(raw: bytes, response_type: type[M], method: str) -> M:
    """Return an answer as the method's message; Internal if it is none."""
    try:
        return response_type.FromString(raw)
    except DecodeError as error:
        raise Internal(f"{method}: the answer is not a {response_type.DESCRIPTOR.full_name}: {error}") from error
