"""The keeper's connection to a foreign shim: ttrpc calls as futures of the loop."""

import itertools
import logging
import socket
from typing import TypeVar

from google.protobuf.message import Message

from bulkhead.errors import Internal, ResourceExhausted, Unavailable, from_code
from bulkhead.proto.containerd.ttrpc_pb2 import Response
from bulkhead.ttrpc_frames import MESSAGE_LIMIT, NAMESPACE_KEY, RESPONSE, Decoder, Frame, request
from sandbox_svc.shim.loop import READ, Future, Loop
from sandbox_svc.shim.pipes import Outlet, receive

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
#: Seconds that a call may take where its caller sets no limit; Wait has none.
DEADLINE = 120.0

_numbers = itertools.count(1, 2)


class Upstream:
    """Calls a foreign shim; a connection that broke is made anew by the next call."""

    def __init__(self, loop: Loop, address: str, version: str, namespace: str) -> None:
        self._loop = loop
        self._path = address.removeprefix("unix://")
        self._service = f"containerd.task.{version}.Task"
        self._metadata = {NAMESPACE_KEY: namespace}
        self._socket: socket.socket | None = None
        self._out: Outlet | None = None
        self._decoder = Decoder()
        self._calls: dict[int, Future[bytes]] = {}

    async def call(self, method: str, message: Message, kind: type[M], limit: float = DEADLINE) -> M:
        """Call a method and return its answer; 0 as limit waits for ever."""
        return kind.FromString(await self.relay(method, message.SerializeToString(), limit))

    async def relay(self, method: str, payload: bytes, limit: float) -> bytes:
        """Pass a serialised request on and return the serialised answer; the foreign shim's errors are raised."""
        if self._socket is None:
            self._connect()
        assert self._out is not None
        stream = next(_numbers)
        answer = self._calls[stream] = Future[bytes]()
        try:
            self._out.write(request(stream, self._service, method, payload, limit or None, self._metadata))
            return await (self._loop.within(answer, limit, f"{method} of the foreign shim") if limit else answer)
        except BrokenPipeError as error:
            raise Unavailable(f"{self._path}: the foreign shim hung up") from error
        finally:
            self._calls.pop(stream, None)

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise Unavailable(f"{self._path}: {error.strerror}") from error
        self._socket, self._decoder = sock, Decoder()
        self._out = Outlet(self._loop, sock.dup().detach())
        self._loop.watch(sock.fileno(), READ, self._readable)

    def _readable(self, _: int) -> None:
        assert self._socket is not None
        data = receive(self._socket)
        if data is None:
            return
        if not data:
            self._hang_up()
            return
        for frame in self._decoder.feed(data):
            call = self._calls.pop(frame.stream, None) if frame.kind == RESPONSE else None
            if call is not None:
                _settle(call, frame)

    def _hang_up(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self._loop.unwatch(sock.fileno())
            sock.close()
        if self._out is not None:
            self._out.close()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(Unavailable(f"{self._path}: the foreign shim hung up"))


def _settle(call: Future[bytes], frame: Frame) -> None:
    if frame.payload is None:
        call.fail(ResourceExhausted(f"answer longer than {MESSAGE_LIMIT} bytes"))
        return
    try:
        answer = Response.FromString(frame.payload)
    except ValueError as error:
        call.fail(Internal(f"the foreign shim's answer is not ttrpc: {error}"))
        return
    if answer.status.code:
        call.fail(from_code(answer.status.code, answer.status.message))
    else:
        call.set(answer.payload)
