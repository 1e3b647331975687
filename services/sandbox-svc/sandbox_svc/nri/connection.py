"""One plugin's socket: ttrpc calls to the plugin and from it, both at once (the frames: mux, bulkhead.ttrpc_frames).

The plugin is not trusted: what it sends is kept only up to one ttrpc message a direction, a frame that cannot be one
ends the connection, every call has a deadline, and a plugin that does not read is disconnected.
"""

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from bulkhead import ttrpc_frames as frames
from bulkhead.errors import BulkheadError, DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from bulkhead.proto.containerd.ttrpc_pb2 import Request
from bulkhead.ttrpc import parse_answer, payload_of
from sandbox_svc.nri import mux

logger = logging.getLogger(__name__)

PLUGIN = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME = "nri.pkg.api.v1alpha1.Runtime"
_READ_SIZE = 64 * 1024

M = TypeVar("M", bound=Message)


class Lost(Unavailable):
    """The connection ended before the answer came: the plugin's failure, not its word."""


class TimedOut(DeadlineExceeded):
    """The plugin did not answer in time."""


#: Answers one call: with the message, or with the error that the plugin is to see.
Answer = Callable[[Message | BulkheadError], None]
#: Serves one call of the plugin in the reader's thread: method, serialised request, answer. It must not wait.
Serve = Callable[[str, bytes, Answer], None]


class Connection:
    """A connected socket; nothing is read before `start`."""

    def __init__(self, sock: socket.socket, serve: Serve, on_close: Callable[[], None], send_timeout: float) -> None:
        self._socket, self._serve, self._on_close = sock, serve, on_close
        # For writing: sendall then lasts at most that long in all. The reader waits in poll.
        sock.settimeout(send_timeout)
        self._lock, self._send_lock = threading.Lock(), threading.Lock()
        self._calls: dict[int, Future[bytes]] = {}
        self._next = 1
        self._closed = False
        self._decoder = mux.Decoder()
        self._answers, self._requests = frames.Decoder(), frames.Decoder()
        self._reader = threading.Thread(target=self._read, name="nri plugin", daemon=True)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._closed

    def start(self) -> None:
        """Begin to read."""
        self._reader.start()

    def call(self, method: str, message: Message, response_type: type[M], timeout: float) -> M:
        """Call a method of the plugin and return its answer within `timeout` seconds.

        Lost and TimedOut are failures of the plugin; any other BulkheadError is its answer, or that the message or the
        answer is longer than ttrpc allows (ResourceExhausted).
        """
        deadline = time.monotonic() + timeout
        stream, future = self._begin(method, message.SerializeToString(), timeout)
        try:
            return parse_answer(future.result(max(0.0, deadline - time.monotonic())), response_type, method)
        except FutureTimeout as error:
            raise TimedOut(f"no answer within {timeout:g} s") from error
        except DeadlineExceeded as error:
            # The plugin's own clock on this call was the faster one.
            raise TimedOut(f"no answer within {timeout:g} s ({error})") from error
        finally:
            with self._lock:
                self._calls.pop(stream, None)

    def close(self) -> None:
        """End the connection; calls under way fail with Lost."""
        with contextlib.suppress(OSError):  # the peer may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def _begin(self, method: str, payload: bytes, timeout: float) -> tuple[int, Future[bytes]]:
        future: Future[bytes] = Future()
        # The stream ids must rise on the wire, so the number is drawn under the lock that orders the writes.
        with self._send_lock:
            with self._lock:
                if self._closed:
                    raise Lost("the connection is closed")
                stream = self._next
                frame = frames.request(stream, PLUGIN, method, payload, timeout, {})
                self._next += 2
                self._calls[stream] = future
            self._write(mux.PLUGIN_SERVICE, frame)
        return stream, future

    def _write(self, connection: int, frame: bytes) -> None:
        try:
            self._socket.sendall(mux.encode(connection, frame))
        except OSError as error:
            # Part of a frame may have left: nothing on this connection can be trusted any more.
            self.close()
            raise Lost(f"the connection broke: {error.strerror or error}") from error

    def _read(self) -> None:
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        try:
            while ready.poll() and (data := self._socket.recv(_READ_SIZE)):
                for connection, part in self._decoder.feed(data):
                    self._take(connection, part)
        except OSError as error:
            logger.debug("NRI: %s", error)
        except BulkheadError as error:
            logger.warning("NRI: a plugin sent what is not the protocol, closing its connection: %s", error)
        finally:
            self._end()

    def _take(self, connection: int, part: bytes) -> None:
        """Take what came for one of the two connections; what belongs to another is dropped, as the Go module does."""
        if connection == mux.PLUGIN_SERVICE:
            for frame in self._answers.feed(part):
                self._settle(frame)
        elif connection == mux.RUNTIME_SERVICE:
            for frame in self._requests.feed(part):
                self._dispatch(frame)

    def _settle(self, frame: frames.Frame) -> None:
        with self._lock:
            future = self._calls.pop(frame.stream, None) if frame.kind == frames.RESPONSE else None
        if future is None:
            return
        try:
            future.set_result(payload_of(frame))
        except BulkheadError as error:
            future.set_exception(error)

    def _dispatch(self, frame: frames.Frame) -> None:
        if frame.kind != frames.REQUEST:
            return
        stream = frame.stream

        def answer(result: Message | BulkheadError) -> None:
            if isinstance(result, BulkheadError):
                raw = frames.response(stream, b"", result.code, str(result))
            else:
                raw = frames.response(stream, result.SerializeToString())
            with contextlib.suppress(Lost), self._send_lock:
                self._write(mux.RUNTIME_SERVICE, raw)

        if frame.payload is None:
            answer(ResourceExhausted(f"request longer than {frames.MESSAGE_LIMIT} bytes"))
            return
        try:
            request = Request.FromString(frame.payload)
        except DecodeError as error:
            raise InvalidArgument(f"ttrpc request: {error}") from error
        method = request.method if request.service == RUNTIME else f"{request.service}/{request.method}"
        self._serve(method, request.payload, answer)

    def _end(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            calls = list(self._calls.values())
            self._calls.clear()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._send_lock:  # no thread may be writing when the number of the descriptor becomes free
            self._socket.close()
        for call in calls:
            call.set_exception(Lost("the connection ended before the answer came"))
        self._on_close()
