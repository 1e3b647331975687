"""image-svc put together: the store, the pulls, the servers, and how they start and stop."""

import fcntl
import logging
import os
import threading
from pathlib import Path

import grpc
from prometheus_client import REGISTRY

from bulkhead import metrics, paths, rpc
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError, FailedPrecondition
from bulkhead.proto.images_pb2_grpc import add_ImagesServicer_to_server, add_ManagementServicer_to_server
from bulkhead.proto.runtime.v1.api_pb2_grpc import add_ImageServiceServicer_to_server
from image_svc.parts import assemble
from image_svc.rpc.cri import CriImages
from image_svc.rpc.images import RunImages
from image_svc.rpc.management import Management
from image_svc.rpc.pull_metrics import PullMetrics
from image_svc.unpack.client import UnpackClient

logger = logging.getLogger(__name__)

#: Seconds a stop waits for calls under way.
GRACE = 3.0
#: Only the owner and the group of the services that call may connect.
SOCKET_MODE = 0o660


class Service:
    """One image-svc over one root and one state directory."""

    def __init__(self, config: Config, client: UnpackClient | None = None) -> None:
        self._config = config
        self._lock_file = _lock(paths.image_records(config.root))
        self._parts = assemble(config, client or UnpackClient(paths.unpack_socket(config.state)))
        self._server: grpc.Server | None = None
        self._pull_metrics = PullMetrics(self._parts.puller.pulls)

    def start(self) -> None:
        """Recover, serve and begin the background work."""
        self._parts.recovery.blobs()
        socket = paths.service_socket(self._config.state, "image-svc")
        self._server = rpc.server(self._register, str(socket), SOCKET_MODE)
        REGISTRY.register(self._pull_metrics)
        self._parts.usage.start()
        threading.Thread(target=self._begin, name="recover", daemon=True).start()
        metrics.serve("image-svc", self._not_ready, port=self._config.bulkhead.metrics_ports.get("image-svc", 0))
        logger.info("serving", extra={"socket": str(socket), "root": str(self._config.root)})

    def stop(self) -> None:
        """Refuse new calls, let the short ones end, call the pulls off, close the store."""
        if self._server is not None:
            self._server.stop(GRACE).wait(GRACE + 1.0)
            REGISTRY.unregister(self._pull_metrics)
        self._parts.usage.stop()
        self._parts.recovery.stop()
        self._parts.collector.stop()
        self._parts.store.close()
        os.close(self._lock_file)

    def _register(self, server: grpc.Server) -> None:
        add_ImageServiceServicer_to_server(CriImages(self._parts), server)
        add_ImagesServicer_to_server(RunImages(self._parts), server)
        add_ManagementServicer_to_server(Management(self._parts), server)

    def _begin(self) -> None:
        """Recover as soon as the unpack helper is there, then collect in the background."""
        self._parts.recovery.run()
        self._parts.collector.start()
        self._parts.collector.kick()

    def _not_ready(self) -> list[str]:
        try:
            self._parts.client.ping(timeout=2.0)
        except BulkheadError as error:
            return [f"unpack helper: {error}"]
        return []


def _lock(records: Path) -> int:
    """Hold the store for this process alone; FailedPrecondition if another one holds it."""
    records.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(records / "images.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise FailedPrecondition(f"{records}: another image-svc uses this store") from error
    return fd
