"""One service behind the frontend: a channel, and what to do while nobody listens at its other end.

A call waits in grpc until the service is back (wait_for_ready), and this module puts the bound on that wait: a call
that is still pending while the socket refuses connections has not been sent, because calls in flight end with their
connection. So nothing is ever sent twice by waiting.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
from prometheus_client import Counter

from bulkhead import rpc
from bulkhead.errors import BulkheadError, DeadlineExceeded, Unavailable
from bulkhead.sockets import is_live
from cri_frontend import headers
from cri_frontend.methods import Method

REPEATS = Counter(
    "bulkhead_frontend_repeats_total", "Reads repeated after a backend died under them.", ["service", "method"]
)
_RETRY_PAUSE = 0.05


class Backend:
    """A service that answers CRI calls; `wait` is how long a call may wait for its restart, in seconds."""

    def __init__(self, name: str, path: str, wait: float) -> None:
        self.name, self.path, self.wait = name, path, wait
        self.channel = rpc.channel(path)

    def unary(self, method: Method, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Forward one call and its metadata, and return the undecoded answer."""
        deadline = time.monotonic() + rpc.remaining(context, method.bound)
        call = self._attempt(method, request, context, deadline)
        if method.repeatable and _broke(call) and context.is_active():
            REPEATS.labels(self.name, method.name).inc()
            call = self._attempt(method, request, context, deadline)
        _send_initial(call, context)
        _set_trailing(call, context)
        if call.code() is grpc.StatusCode.OK:
            answer: bytes = call.result()
            return answer
        raise self._error(call, method)

    def _attempt(self, method: Method, request: bytes, context: grpc.ServicerContext, deadline: float) -> Any:
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(method.path)
        call: Any = send.future(
            request,
            timeout=max(deadline - time.monotonic(), 0.0),
            metadata=(*headers.passed_on(context.invocation_metadata()), *rpc.metadata()),
            wait_for_ready=True,
        )
        # grpc's own result() wakes up ten times a second for each waiting call; an event does not.
        done = threading.Event()
        call.add_done_callback(lambda _: done.set())
        if not context.add_callback(call.cancel):
            call.cancel()
        while not done.wait(self.wait):
            if not is_live(self.path):
                call.cancel()
                raise self._absent()
        return call

    def stream(self, method: Method, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Forward one server stream message by message; it is opened again only if nothing was received yet."""
        give_up = time.monotonic() + self.wait
        while True:
            self._await(context, give_up)
            open_stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(method.path)
            call: Any = open_stream(
                request,
                timeout=rpc.remaining(context, method.bound),
                metadata=(*headers.passed_on(context.invocation_metadata()), *rpc.metadata()),
            )
            if not context.add_callback(call.cancel):
                call.cancel()
            received = False
            try:
                for message in call:
                    if not received:
                        _send_initial(call, context)
                    received = True
                    yield message
            except grpc.RpcError:
                if not received and _broke(call) and context.is_active() and time.monotonic() < give_up:
                    time.sleep(_RETRY_PAUSE)
                    continue
                _set_trailing(call, context)
                raise self._error(call, method) from None
            _set_trailing(call, context)
            return

    def _await(self, context: grpc.ServicerContext, give_up: float) -> None:
        while not is_live(self.path):
            if time.monotonic() >= give_up or not context.is_active():
                raise self._absent()
            time.sleep(_RETRY_PAUSE)

    def _absent(self) -> Unavailable:
        return Unavailable(f"{self.name} is not running (waited {self.wait:g} s for it); try again")

    def _error(self, call: grpc.Call, method: Method) -> BulkheadError | grpc.RpcError:
        """Return what to raise: our own text for what grpc made up, the backend's error as it is otherwise."""
        if _broke(call):
            return Unavailable(f"{self.name} went away during {method.name}; try again")
        if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not rpc.answered(call):
            return DeadlineExceeded(f"{self.name} did not answer {method.name} in time")
        assert isinstance(call, grpc.RpcError)
        return call


def _broke(call: grpc.Call) -> bool:
    return call.code() is grpc.StatusCode.UNAVAILABLE and not rpc.answered(call)


def _send_initial(call: grpc.Call, context: grpc.ServicerContext) -> None:
    if context.is_active() and (pairs := headers.passed_on(call.initial_metadata())):
        context.send_initial_metadata(pairs)


def _set_trailing(call: grpc.Call, context: grpc.ServicerContext) -> None:
    if context.is_active() and (pairs := headers.passed_on(call.trailing_metadata())):
        context.set_trailing_metadata(pairs)
