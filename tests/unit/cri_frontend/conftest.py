"""A frontend in this process, with tiny backends behind it that a test can stop and start again."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from bulkhead import paths, rpc
from bulkhead.config.model import Bulkhead, Config
from bulkhead.errors import BulkheadError
from bulkhead.proto.runtime.v1 import api_pb2, api_pb2_grpc
from cri_frontend.server import Frontend

NO_PORTS = dict.fromkeys(("cri-frontend", "image-svc", "sandbox-svc", "stream-svc", "decryptor"), -1)


class Tiny(api_pb2_grpc.RuntimeServiceServicer, api_pb2_grpc.ImageServiceServicer):
    """A backend that counts its calls and does what the test puts into `answers`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.left: float | None = None
        self.cancelled = threading.Event()
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()
        self.fail: BulkheadError | None = None

    def _enter(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.metadata = dict(context.invocation_metadata())
        self.left = context.time_remaining()
        self.entered.release()
        if self.fail:
            raise self.fail

    def Status(self, request: Any, context: grpc.ServicerContext) -> Any:
        answer = api_pb2.StatusResponse(info={"config": "{}"})
        answer.status.conditions.add(type="RuntimeReady", status=True)
        answer.status.conditions.add(type="NetworkReady", status=False, reason="NoNetwork", message="no conf")
        answer.runtime_handlers.add(name="")
        return answer

    def ListContainers(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("ListContainers", context)
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("grpc-status-details-bin", b"\x08\x05")))
        return api_pb2.ListContainersResponse(containers=[api_pb2.Container(id="c1")])

    @rpc.long_call
    def StopContainer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("StopContainer", context)
        context.add_callback(self.cancelled.set)
        self.release.wait(20)
        return api_pb2.StopContainerResponse()

    @rpc.long_call
    def ContainerStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("ContainerStatus", context)
        self.release.wait(20)
        return api_pb2.ContainerStatusResponse()

    @rpc.long_call
    def GetContainerEvents(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._enter("GetContainerEvents", context)
        context.add_callback(self.cancelled.set)
        yield api_pb2.ContainerEventResponse(container_id="c1")
        while context.is_active() and not self.release.wait(0.05):
            pass

    def ImageStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("ImageStatus", context)
        return api_pb2.ImageStatusResponse(image=api_pb2.Image(id="i1"))


class Stack:
    """A frontend over two sockets, each served by `tiny` while it is up."""

    def __init__(self, config: Config) -> None:
        self.config, self.tiny = config, Tiny()
        self._servers: dict[str, grpc.Server] = {}
        for name in ("cri-frontend", "sandbox-svc", "image-svc"):
            (config.state / name).mkdir()
        self.frontend = Frontend(config)
        self.channel = rpc.channel(str(paths.cri_socket(config.state)))
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self.channel)
        self.images = api_pb2_grpc.ImageServiceStub(self.channel)

    def up(self, name: str) -> None:
        """Serve that backend."""
        add: Callable[..., None] = {
            "sandbox-svc": api_pb2_grpc.add_RuntimeServiceServicer_to_server,
            "image-svc": api_pb2_grpc.add_ImageServiceServicer_to_server,
        }[name]
        path = str(paths.service_socket(self.config.state, name))
        self._servers[name] = rpc.server(lambda server: add(self.tiny, server), path)

    def down(self, name: str) -> None:
        """Cut that backend off, with every call it works on."""
        if server := self._servers.pop(name, None):
            server.stop(0).wait()

    def close(self) -> None:
        """Stop everything."""
        self.tiny.release.set()
        for name in list(self._servers):
            self.down(name)
        self.channel.close()
        self.frontend.stop()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until the condition holds; fail after that many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.01)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration with everything below a scratch directory and half a second of patience."""
    return replace(Config(), state=tmp_path, bulkhead=Bulkhead(metrics_ports=NO_PORTS, backend_wait=0.5))


@pytest.fixture
def stack(config: Config) -> Iterator[Stack]:
    """A frontend whose two backends are up."""
    made = Stack(config)
    made.up("sandbox-svc")
    made.up("image-svc")
    yield made
    made.close()
