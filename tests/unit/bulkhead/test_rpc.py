"""gRPC between services: pools, error mapping, and the undocumented thing of grpcio that the pools rest on."""

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from bulkhead import errors, rpc
from bulkhead.proto import keys_pb2, keys_pb2_grpc


class Keys(keys_pb2_grpc.KeysServicer):
    """ListKeys says which thread it ran in; Check raises what the test puts into `error`."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def ListKeys(self, request: Any, context: grpc.ServicerContext) -> Any:
        return keys_pb2.ListKeysResponse(keys=[keys_pb2.Key(file=threading.current_thread().name)])

    @rpc.long_call
    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self.error:
            raise self.error
        raise errors.NotFound(threading.current_thread().name)


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[tuple[Keys, keys_pb2_grpc.KeysStub]]:
    """A served Keys and its client."""
    servicer, path = Keys(), str(tmp_path / "s")
    server = rpc.server(lambda made: keys_pb2_grpc.add_KeysServicer_to_server(servicer, made), path)
    channel = rpc.channel(path)
    yield servicer, keys_pb2_grpc.KeysStub(channel)
    channel.close()
    server.stop(0).wait()


def test_grpcio_honours_a_handlers_own_pool(tmp_path: Path) -> None:
    """grpcio runs a handler in the executor it finds in the function's experimental_thread_pool, a stream's too."""
    pool = futures.ThreadPoolExecutor(1, thread_name_prefix="own")

    def unary(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return threading.current_thread().name.encode()

    def stream(_request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield threading.current_thread().name.encode()

    unary.experimental_thread_pool = stream.experimental_thread_pool = pool  # type: ignore[attr-defined]
    server = grpc.server(futures.ThreadPoolExecutor(1, thread_name_prefix="shared"))
    handlers: dict[str, Any] = {
        "U": grpc.unary_unary_rpc_method_handler(unary),
        "S": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.X", handlers),))
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    server.start()
    channel = rpc.channel(str(tmp_path / "s"))
    one: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/x.X/U")
    many: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/x.X/S")
    names = [one(b"", timeout=5), *many(b"", timeout=5)]
    channel.close()
    server.stop(0).wait()
    pool.shutdown()

    assert [name.split(b"_")[0] for name in names] == [b"own", b"own"]


def test_long_calls_have_their_pool(keys: tuple[Keys, keys_pb2_grpc.KeysStub]) -> None:
    """A method marked long_call runs among the long threads, others among the short."""
    _, stub = keys
    with pytest.raises(errors.NotFound, match="long_"):
        rpc.call(stub.Check, keys_pb2.CheckRequest(), service="x", timeout=30)

    short = rpc.call(stub.ListKeys, keys_pb2.ListKeysRequest(), service="x", timeout=30)
    assert short.keys[0].file.startswith("short_")


@pytest.mark.parametrize(
    "kind", [kind for kind in errors.BulkheadError.__subclasses__() if kind.__module__ == errors.__name__]
)
def test_errors_cross_the_wire(keys: tuple[Keys, keys_pb2_grpc.KeysStub], kind: type[errors.BulkheadError]) -> None:
    """Every error of the tree arrives as itself with its text, line feeds and all."""
    servicer, stub = keys
    servicer.error = kind("first\nsecond — 🔑")
    with pytest.raises(kind) as error:
        rpc.call(stub.Check, keys_pb2.CheckRequest(), service="x", timeout=30)

    assert str(error.value) == "first\nsecond — 🔑"


def test_a_bug_is_internal_and_unimplemented_is_itself(keys: tuple[Keys, keys_pb2_grpc.KeysStub]) -> None:
    """An unexpected exception is INTERNAL with its type; NotImplementedError names the method."""
    servicer, stub = keys
    servicer.error = ZeroDivisionError("by zero")
    with pytest.raises(errors.Internal, match="Check failed inside Bulkhead: ZeroDivisionError"):
        rpc.call(stub.Check, keys_pb2.CheckRequest(), service="x", timeout=30)
    servicer.error = NotImplementedError()
    with pytest.raises(errors.Unimplemented, match="Check is not implemented"):
        rpc.call(stub.Check, keys_pb2.CheckRequest(), service="x", timeout=30)


def test_a_dead_peer_is_named(tmp_path: Path) -> None:
    """A socket nobody serves is Unavailable by the service's name, at once or after the wait."""
    channel = rpc.channel(str(tmp_path / "nobody"))
    stub = keys_pb2_grpc.KeysStub(channel)
    with pytest.raises(errors.Unavailable, match="decryptor does not answer"):
        rpc.call(stub.ListKeys, keys_pb2.ListKeysRequest(), service="decryptor", timeout=5, wait=False)
    channel.close()


def test_a_live_socket_is_not_stolen(keys: tuple[Keys, keys_pb2_grpc.KeysStub], tmp_path: Path) -> None:
    """A second server on the same path is refused; grpc by itself would take it over."""
    with pytest.raises(errors.Unavailable, match="in use by another process"):
        rpc.server(lambda _: None, str(tmp_path / "s"))
