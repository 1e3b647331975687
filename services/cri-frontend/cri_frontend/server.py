"""The frontend put together: both CRI services on one socket."""

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from bulkhead import metrics, paths, rpc
from bulkhead.config.model import Config
from bulkhead.errors import Unavailable
from bulkhead.pool import CallPool
from bulkhead.proto.runtime.v1 import api_pb2
from cri_frontend import proxy, status
from cri_frontend.backend import Backend
from cri_frontend.probes import Probe

logger = logging.getLogger(__name__)

#: Seconds that calls in flight have when the frontend is told to stop; the kubelet repeats what was cut.
STOP_GRACE = 2.0


class Frontend:
    """A running frontend; stop() ends it."""

    def __init__(self, config: Config) -> None:
        directory = paths.cri_socket(config.state).parent
        self._lock = _lock(directory / "lock")
        wait = config.bulkhead.backend_wait
        self.sandbox = Backend("sandbox-svc", str(paths.service_socket(config.state, "sandbox-svc")), wait)
        self.images = Backend("image-svc", str(paths.service_socket(config.state, "image-svc")), wait)
        self.watch = status.Watch(self.sandbox, _probes(config))
        self._pool = CallPool(proxy.SHORT_THREADS, "forward")
        self.watch.start()
        metrics.serve("cri-frontend", self.watch.readiness, port=config.bulkhead.metrics_ports.get("cri-frontend", -1))
        socket = paths.cri_socket(config.state)
        # Whoever holds the lock may: what is there is a dead frontend's, perhaps given to a user (grpc.uid) whose
        # sockets this one may not even probe.
        socket.unlink(missing_ok=True)
        # With a gid configured, the launcher gives the socket that group.
        self.server = rpc.server(self._register, str(socket), 0o660 if config.grpc.gid else 0o600)
        logger.info("serving the CRI on %s", socket)

    def _register(self, server: grpc.Server) -> None:
        local = {
            "Version": _local(lambda request, _: status.version(request), api_pb2.VersionRequest),
            "Status": _local(lambda request, _: self.watch.status(request.verbose), api_pb2.StatusRequest),
        }
        runtime = {**proxy.handlers("RuntimeService", self.sandbox, self._pool), **local}
        images = proxy.handlers("ImageService", self.images, self._pool)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", runtime),
                grpc.method_handlers_generic_handler("runtime.v1.ImageService", images),
            )
        )

    def stop(self) -> None:
        """Refuse new calls, give those in flight STOP_GRACE seconds, and return when all have ended."""
        self.watch.stop()
        self.server.stop(STOP_GRACE).wait()
        self.sandbox.channel.close()
        self.images.channel.close()


def _local(behaviour: Callable[[Any, grpc.ServicerContext], Any], request: type[Any]) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        behaviour,
        request_deserializer=request.FromString,
        response_serializer=lambda answer: answer.SerializeToString(),
    )


def _probes(config: Config) -> list[Probe]:
    return [
        Probe(
            name,
            condition,
            paths.service_socket(config.state, name),
            config.bulkhead.metrics_ports.get(name, -1),
        )
        for name, condition in (
            ("image-svc", "ImageServiceReady"),
            ("stream-svc", "StreamingReady"),
            ("decryptor", "DecryptionReady"),
        )
    ]


def _lock(path: Path) -> int:
    """Hold the socket's lock until the process ends: grpc would unlink and steal a live socket without a word."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Unavailable(f"another cri-frontend holds {path}") from error
    return fd
