"""gRPC between the services: servers, channels, deadlines and error mapping, the same for all five.

Sync servers and clients with two thread pools: calls that may block for seconds (`long_call`) have a pool of their
own, so that a hundred waiting StopContainers leave Version at its millisecond.
"""

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NoReturn, TypeVar

import grpc

from bulkhead import courtesy, log
from bulkhead.errors import BulkheadError, DeadlineExceeded, Unavailable, from_code
from bulkhead.metrics import CALLS
from bulkhead.pool import CallPool
from bulkhead.sockets import is_live

logger = logging.getLogger(__name__)

#: The kubelet's own limit for one message.
MESSAGE_LIMIT = 16 * 1024 * 1024
CORRELATION_KEY = "x-bulkhead-correlation"
#: Trailing metadata that a handler's error carries, as against a status that grpc made for a broken connection.
ANSWERED_KEY = "x-bulkhead-answered"
SHORT_THREADS, LONG_THREADS = 16, 512
#: Bytes of an error's message, which may quote a registry or an image.
TEXT_LIMIT = 4000

_F = TypeVar("_F", bound=Callable[..., Any])
_long_pool: futures.ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def long_pool() -> futures.ThreadPoolExecutor:
    """Return the process's pool for calls that may take seconds; its threads start on demand."""
    global _long_pool
    with _pool_lock:
        if _long_pool is None:
            _long_pool = CallPool(LONG_THREADS, "long")
        return _long_pool


def long_call(method: _F) -> _F:
    """Mark a servicer method as one that may block for seconds."""
    method.long_call = True  # type: ignore[attr-defined] # functions take attributes
    return method


def in_pool(method: _F, pool: futures.ThreadPoolExecutor) -> _F:
    """Have a handler run in that pool instead of the server's short one."""
    method.thread_pool = pool  # type: ignore[attr-defined] # functions take attributes
    return method


class _Interceptor(grpc.ServerInterceptor):
    """Gives every call its correlation id, its pool, its error mapping, its log line and its metric."""

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = continuation(details)
        if handler is None:
            return None
        method = details.method.rpartition("/")[2]
        if handler.unary_unary is not None:
            wrapped = _unary(handler.unary_unary, method)
            return grpc.unary_unary_rpc_method_handler(
                wrapped, handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            streaming = _stream(handler.unary_stream, method)
            return grpc.unary_stream_rpc_method_handler(
                streaming, handler.request_deserializer, handler.response_serializer
            )
        if handler.stream_stream is not None:
            streaming = _stream(handler.stream_stream, method)
            return grpc.stream_stream_rpc_method_handler(
                streaming, handler.request_deserializer, handler.response_serializer
            )
        return handler


def _begin(context: grpc.ServicerContext) -> None:
    metadata = dict(context.invocation_metadata())
    value = str(metadata.get(CORRELATION_KEY, ""))
    log.correlation.set(value if _CORRELATION(value) else log.new_correlation())


def _status(method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    """Log the error and return the status that it stands for."""
    if isinstance(error, BulkheadError):
        code, text = _CODES.get(error.code, grpc.StatusCode.UNKNOWN), str(error)[:TEXT_LIMIT]
        logger.log(logging.DEBUG if code is grpc.StatusCode.NOT_FOUND else logging.WARNING, "%s: %s", method, text)
    elif isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        code, text = error.code(), error.details() or ""
    elif isinstance(error, NotImplementedError):
        code, text = grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented"
    else:
        code, text = grpc.StatusCode.INTERNAL, f"{method} failed inside Bulkhead: {type(error).__name__}: {error}"
        logger.error("%s failed", method, exc_info=error)
    return code, text


def _fail(context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
    """End the call with that status; grpc takes a handler that returns nothing for a broken one."""
    trailing: Sequence[tuple[str, str | bytes]] = getattr(context, "trailing_metadata", tuple)() or ()
    context.set_trailing_metadata((*trailing, (ANSWERED_KEY, "1")))
    # Header values carry no line feeds and grpc cuts what is longer than 8 KiB of headers.
    context.abort(code, text.encode(errors="replace")[:TEXT_LIMIT].decode(errors="ignore"))


def _unary(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    @functools.wraps(behaviour)
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        _begin(context)
        began, code = time.monotonic(), "OK"
        try:
            return behaviour(request, context)
        except Exception as error:
            if _aborted(context):
                raise
            status, text = _status(method, error)
            code = status.name
            _fail(context, status, text)
        finally:
            CALLS.labels(method, code).observe(time.monotonic() - began)

    return _place(call, behaviour)


def _stream(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    @functools.wraps(behaviour)
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        _begin(context)
        began, code = time.monotonic(), "OK"
        try:
            yield from behaviour(request, context)
        except Exception as error:
            if _aborted(context):
                raise
            status, text = _status(method, error)
            code = status.name
            _fail(context, status, text)
        finally:
            CALLS.labels(method, code).observe(time.monotonic() - began)

    return _place(call, behaviour)


def _aborted(context: grpc.ServicerContext) -> bool:
    """context.abort() has already answered and raises to unwind."""
    state = getattr(context, "_state", None)
    return bool(getattr(state, "aborted", False))


def _place(call: Callable[..., Any], behaviour: Callable[..., Any]) -> Callable[..., Any]:
    pool = getattr(behaviour, "thread_pool", None)
    if pool is None and getattr(behaviour, "long_call", False):
        pool = long_pool()
    if pool is not None:
        # grpcio looks for this attribute on the handler; undocumented, held by a test.
        call.experimental_thread_pool = pool  # type: ignore[attr-defined] # functions take attributes
    return call


#: What a caller may give as a correlation id: it goes into every log line of the call.
_CORRELATION = re.compile(r"[0-9A-Za-z-]{1,64}").fullmatch

_CODES = {code.value[0]: code for code in grpc.StatusCode}

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.so_reuseport", 0),
    ("grpc.max_metadata_size", 64 * 1024),
]

_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
    # Servers in Rust refuse the escaped socket path that grpc would send.
    ("grpc.default_authority", "localhost"),
    ("grpc.use_local_subchannel_pool", 1),
]


def server(register: Callable[[grpc.Server], None], path: str, mode: int = 0o600) -> grpc.Server:
    """Start a server on a unix socket with that mode and return it.

    grpc unlinks a socket that is in use without a word, so a live one is refused here first (Unavailable).
    """
    refuse_live(path)
    made = grpc.server(
        CallPool(SHORT_THREADS, "short", courtesy.calls),
        interceptors=[_Interceptor()],
        options=_OPTIONS,
    )
    register(made)
    old = os.umask(0o777 & ~mode)
    try:
        made.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(old)
    os.chmod(path, mode)
    made.start()
    return made


def refuse_live(path: str) -> None:
    """Raise Unavailable if a process listens on that unix socket."""
    if is_live(path):
        raise Unavailable(f"{path} is in use by another process")


def channel(path: str) -> grpc.Channel:
    """Return a channel to a unix socket; it connects when first used and again after the peer's restart."""
    return grpc.insecure_channel(f"unix:{path}", options=_CHANNEL_OPTIONS)


def metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries the correlation id to the next service."""
    return ((CORRELATION_KEY, log.correlation.get() or log.new_correlation()),)


def remaining(context: grpc.ServicerContext, bound: float) -> float:
    """Return the seconds left to the call, at most `bound`: a caller without a deadline reports centuries."""
    left = context.time_remaining()
    return bound if left is None or left > bound else max(left, 0.0)


def call(method: Callable[..., Any], request: Any, *, service: str, timeout: float, wait: bool = True) -> Any:
    """Call another service; its errors come back as ours, a dead one as Unavailable naming it.

    With `wait` the call waits for a restarting service, never longer than `timeout` seconds.
    """
    try:
        return method(request, timeout=timeout, wait_for_ready=wait, metadata=metadata())
    except grpc.RpcError as error:
        if not isinstance(error, grpc.Call):
            raise
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and not answered(error):
            raise Unavailable(f"{service} does not answer") from error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not answered(error):
            raise DeadlineExceeded(f"{service} did not answer within {timeout:g} s") from error
        raise from_code(code.value[0], details) from error


def answered(error: grpc.Call) -> bool:
    """Whether a handler of ours set this status; grpc makes statuses up itself for a connection that broke."""
    return any(key == ANSWERED_KEY for key, _ in error.trailing_metadata() or ())
