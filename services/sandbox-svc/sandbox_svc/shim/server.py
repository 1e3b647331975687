"""The shim's ttrpc server: many calls in flight on each connection, one loop for all."""

import array
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from bulkhead.errors import BulkheadError, Internal, InvalidArgument, ResourceExhausted, Unimplemented
from bulkhead.proto.containerd.ttrpc_pb2 import Request
from bulkhead.ttrpc_frames import FLAG_DESCRIPTOR, MESSAGE_LIMIT, REQUEST, Decoder, Frame, response
from sandbox_svc.shim.loop import READ, WRITE, Future, Loop
from sandbox_svc.shim.pipes import Door, receive

logger = logging.getLogger(__name__)

#: A peer that lets this many bytes of answers pile up is cut off.
BACKLOG_LIMIT = 4 * MESSAGE_LIMIT


class Answer(NamedTuple):
    """A serialised response and at most one descriptor, closed after it was sent."""

    payload: bytes
    fd: int = -1


#: Takes a request's payload and its time limit in seconds (0: none).
Method = Callable[[bytes, float], Coroutine[Any, None, Answer]]


class Server:
    """Answers calls by `service/method`."""

    def __init__(self, loop: Loop, methods: dict[str, Method]) -> None:
        self.loop = loop
        self.methods = methods
        self.connections: set[Connection] = set()
        self._door: Door | None = None

    def listen(self, listener: socket.socket) -> None:
        """Serve those who connect to a listening socket."""
        self._door = Door(self.loop, listener, lambda sock: self.connections.add(Connection(self, sock)))

    def flushed(self) -> bool:
        """Whether no answer waits to be written."""
        return not any(connection.backlog for connection in self.connections)


class Connection:
    """One client."""

    __slots__ = ("_decoder", "_fd", "_out", "_server", "_socket", "backlog")

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server, self._socket, self._fd = server, sock, sock.fileno()
        self._decoder = Decoder()
        self._out: deque[tuple[memoryview, int]] = deque()
        self.backlog = 0
        server.loop.watch(self._fd, READ, self._ready)

    def close(self) -> None:
        """Hang up; what is still being worked on for this client is finished and its answers dropped."""
        if self not in self._server.connections:
            return
        self._server.connections.discard(self)
        self._server.loop.unwatch(self._fd)
        self._socket.close()
        for _, fd in self._out:
            _close(fd)
        self._out.clear()
        self.backlog = 0

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE and self in self._server.connections:
            self._read()

    def _read(self) -> None:
        data = receive(self._socket)
        if data is None:
            return
        if not data:
            self.close()
            return
        for frame in self._decoder.feed(data):
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        stream = frame.stream
        if frame.kind != REQUEST:
            return  # streaming calls are not offered, so their data has no receiver
        try:
            if frame.payload is None:
                raise ResourceExhausted(f"message longer than {MESSAGE_LIMIT} bytes")
            request = Request.FromString(frame.payload)
            method = self._server.methods.get(f"{request.service}/{request.method}")
            if method is None:
                raise Unimplemented(f"this shim does not offer {request.service}/{request.method}")
            answer = self._server.loop.spawn(method(request.payload, request.timeout_nano / 1e9))
        except DecodeError as error:
            self._send(response(stream, b"", InvalidArgument.code, f"not a ttrpc request: {error}"), -1)
        except BulkheadError as error:
            self._send(response(stream, b"", error.code, str(error)), -1)
        else:
            answer.then(lambda future: self._answered(stream, future))

    def _answered(self, stream: int, future: Future[Answer]) -> None:
        try:
            answer = future.result()
            flags = FLAG_DESCRIPTOR if answer.fd >= 0 else 0
            self._send(response(stream, answer.payload, flags=flags), answer.fd)
        except BulkheadError as error:
            self._send(response(stream, b"", error.code, str(error)), -1)
        except DecodeError as error:
            self._send(response(stream, b"", InvalidArgument.code, f"request cannot be parsed: {error}"), -1)
        except Exception as error:
            logger.exception("a call failed")
            self._send(response(stream, b"", Internal.code, f"{type(error).__name__}: {error}"), -1)

    def _send(self, data: bytes, fd: int) -> None:
        if self not in self._server.connections or self.backlog + len(data) > BACKLOG_LIMIT:
            _close(fd)
            self.close()
            return
        self._out.append((memoryview(data), fd))
        self.backlog += len(data)
        if len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._out:
            data, fd = self._out[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
            try:
                sent = self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._server.loop.watch(self._fd, READ | WRITE, self._ready)
                return
            except OSError:
                self.close()
                return
            _close(fd)
            self.backlog -= sent
            if sent < len(data):
                self._out[0] = (data[sent:], -1)
            else:
                self._out.popleft()
        self._server.loop.watch(self._fd, READ, self._ready)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
