"""The generic handlers of both CRI services: bytes in, bytes out."""

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

from bulkhead import rpc
from cri_frontend.backend import Backend
from cri_frontend.methods import Method, methods

#: Forwarded short calls wait in a pool of their own while a backend restarts, so that Version and Status, which
#: need no backend, never queue behind them.
SHORT_THREADS = 64

Handlers = dict[str, "grpc.RpcMethodHandler[Any, Any]"]


def handlers(service: str, backend: Backend, pool: futures.ThreadPoolExecutor) -> Handlers:
    """Return a handler for every forwarded method of that service, short ones in that pool."""
    return {method.name: _handler(method, backend, pool) for method in methods(service)}


def _handler(method: Method, backend: Backend, pool: futures.ThreadPoolExecutor) -> "grpc.RpcMethodHandler[Any, Any]":
    place: Callable[[Any], Any] = rpc.long_call if method.long else lambda call: rpc.in_pool(call, pool)

    def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
        return backend.unary(method, request, context)

    def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        return backend.stream(method, request, context)

    if method.streams:
        return grpc.unary_stream_rpc_method_handler(place(stream))
    return grpc.unary_unary_rpc_method_handler(place(unary))
