"""Publishing task events to containerd (TTRPC_ADDRESS), in order, across its restarts.

Events are hints: whoever lost one asks State and Wait. So the queue is bounded and the oldest are dropped.
"""

import logging
import socket
import time
from collections import deque

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from bulkhead.proto.containerd.forward_pb2 import ForwardRequest
from bulkhead.ttrpc_frames import NAMESPACE_KEY, RESPONSE, Decoder, request
from sandbox_svc.shim.loop import READ, Loop, Timer
from sandbox_svc.shim.pipes import receive

logger = logging.getLogger(__name__)

SERVICE = "containerd.services.events.ttrpc.v1.Events"
QUEUE_LIMIT = 1000
#: Seconds between two attempts to reach containerd, and for it to take an event.
RETRY, ANSWER_WAIT = 1.0, 5.0


def pack(message: Message) -> Any:
    """Wrap a message as containerd does: its bare full name is the type URL."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Publisher:
    """One connection to containerd's event service, one event in flight."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._path = self._namespace = ""
        self._queue: deque[bytes] = deque()
        self._socket: socket.socket | None = None
        self._decoder = Decoder()
        self._stream = 1
        self._waiting = False
        self._timer: Timer | None = None

    def begin(self, address: str, namespace: str) -> None:
        """Publish to this address from now on; an empty one is nobody's."""
        self._path, self._namespace = address.removeprefix("unix://"), namespace

    def publish(self, topic: str, kind: type[Message], **fields: object) -> None:
        """Queue an event of that kind; without an address it is nobody's, and not even made."""
        if not self._path:
            return
        event = kind(**fields)
        message = ForwardRequest()
        envelope = message.envelope
        now = time.time_ns()
        envelope.timestamp.seconds, envelope.timestamp.nanos = now // 1_000_000_000, now % 1_000_000_000
        envelope.namespace, envelope.topic = self._namespace, topic
        envelope.event.CopyFrom(pack(event))
        self._queue.append(message.SerializeToString())
        if len(self._queue) > QUEUE_LIMIT:
            self._queue.popleft()
        self._loop.soon(self._advance)

    @property
    def idle(self) -> bool:
        """Whether every event has been taken."""
        return not self._queue

    def _advance(self) -> None:
        if not self._queue or self._waiting or self._timer is not None:
            return
        try:
            if self._socket is None:
                self._connect()
            assert self._socket is not None
            metadata = {NAMESPACE_KEY: self._namespace}
            frame = request(self._stream, SERVICE, "Forward", self._queue[0], ANSWER_WAIT, metadata)
            self._stream += 2
            if self._socket.send(frame, socket.MSG_NOSIGNAL) < len(frame):
                raise OSError("containerd does not read")
        except OSError:
            self._retry()
            return
        self._waiting = True
        self._timer = self._loop.later(ANSWER_WAIT, self._overdue)

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        self._socket, self._decoder, self._stream = sock, Decoder(), 1
        self._loop.watch(sock.fileno(), READ, self._readable)

    def _readable(self, _: int) -> None:
        assert self._socket is not None
        data = receive(self._socket)
        if data is None:
            return
        if not data:
            self._retry()
            return
        for frame in self._decoder.feed(data):
            if frame.kind == RESPONSE and self._waiting:
                # Taken or refused for good: either way it is not sent again.
                self._queue.popleft()
                self._settle()
        self._advance()

    def _overdue(self) -> None:
        self._timer = None
        self._retry()

    def _settle(self) -> None:
        self._waiting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _retry(self) -> None:
        self._settle()
        sock, self._socket = self._socket, None
        if sock is not None:
            self._loop.unwatch(sock.fileno())
            sock.close()
        self._timer = self._loop.later(RETRY, self._again)

    def _again(self) -> None:
        self._timer = None
        self._advance()
