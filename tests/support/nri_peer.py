"""The plugin's end of a socket, as a test wants it to behave."""

import socket
import threading
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from bulkhead import ttrpc_frames as frames
from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.containerd.ttrpc_pb2 import Request, Response
from sandbox_svc.nri import mux

#: What a method answers: a message, an error as (code, text), or None for nothing at all.
Answers = dict[str, Callable[[bytes], Message | tuple[int, str] | None]]


class Peer:
    """Answers the runtime's calls in a thread, and calls the runtime."""

    def __init__(self, answers: Answers | None = None) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.theirs.settimeout(60.0)
        self.answers: Answers = {
            "Configure": lambda raw: nri.ConfigureResponse(),
            "Synchronize": lambda raw: nri.SynchronizeResponse(more=nri.SynchronizeRequest.FromString(raw).more),
            **(answers or {}),
        }
        self.called: list[tuple[str, bytes]] = []
        self.replies: dict[int, Response] = {}
        self._came = threading.Condition()
        self._stream = -1
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def call(self, method: str, message: Message) -> Response:
        """Call the runtime and return its raw answer."""
        stream = self.send(method, message.SerializeToString())
        with self._came:
            assert self._came.wait_for(lambda: stream in self.replies, 30.0), f"{method}: no answer"
            return self.replies[stream]

    def send(self, method: str, payload: bytes) -> int:
        """Call the runtime and wait for nothing."""
        self._stream += 2
        frame = frames.request(self._stream, "nri.pkg.api.v1alpha1.Runtime", method, payload, None, {})
        self.theirs.sendall(mux.encode(mux.RUNTIME_SERVICE, frame))
        return self._stream

    def register(self, name: str = "p", index: str = "10") -> Response:
        """Register, as a plugin does first."""
        return self.call("RegisterPlugin", nri.RegisterPluginRequest(plugin_name=name, plugin_idx=index))

    def methods(self) -> list[str]:
        """What the runtime called so far."""
        return [method for method, _ in self.called]

    def close(self) -> None:
        """Hang up."""
        self.theirs.close()

    def _serve(self) -> None:
        decoder = mux.Decoder()
        streams: dict[int, Any] = {mux.PLUGIN_SERVICE: frames.Decoder(), mux.RUNTIME_SERVICE: frames.Decoder()}
        try:
            while data := self.theirs.recv(65536):
                for connection, part in decoder.feed(data):
                    for frame in streams[connection].feed(part):
                        self._take(connection, frame)
        except OSError:
            pass  # the test closed it, or nothing came for a minute

    def _take(self, connection: int, frame: frames.Frame) -> None:
        assert frame.payload is not None
        if connection == mux.RUNTIME_SERVICE:
            with self._came:
                self.replies[frame.stream] = Response.FromString(frame.payload)
                self._came.notify_all()
            return
        request = Request.FromString(frame.payload)
        self.called.append((request.method, request.payload))
        default: Callable[[bytes], Message | tuple[int, str] | None] = lambda raw: nri.Empty()  # noqa: E731
        answer = self.answers.get(request.method, default)(request.payload)
        if isinstance(answer, tuple):
            self.theirs.sendall(mux.encode(mux.PLUGIN_SERVICE, frames.response(frame.stream, b"", *answer)))
        elif answer is not None:
            raw = frames.response(frame.stream, answer.SerializeToString())
            self.theirs.sendall(mux.encode(mux.PLUGIN_SERVICE, raw))
