"""image-svc put together: the store, the pulls, the servers, and how they start and stop."""

import fcntl
import logging
import os
import threading
from pathlib import Path

import grpc

from bulkhead import metrics, paths, rpc
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError, FailedPrecondition
from bulkhead.proto.images_pb2_grpc import add_ImagesServicer_to_server
from bulkhead.proto.runtime.v1.api_pb2_grpc import add_ImageServiceServicer_to_server
from image_svc.catalogue import Catalogue
from image_svc.decryption import Gatekeeper
from image_svc.gc import Collector
from image_svc.ingest import Content
from image_svc.leases import Leases
from image_svc.pull import Puller
from image_svc.rpc.cri import CriImages
from image_svc.rpc.images import RunImages
from image_svc.snapshotters import Snapshotters
from image_svc.store import Store
from image_svc.unpack.client import UnpackClient
from image_svc.usage import ContainerUsage

logger = logging.getLogger(__name__)

#: Seconds a stop waits for calls under way.
GRACE = 3.0
#: Only the owner and the group of the services that call may connect.
SOCKET_MODE = 0o660


class Service:
    """One image-svc over one root and one state directory."""

    def __init__(self, config: Config, *, puller: Puller | None = None) -> None:
        self._config = config
        self._lock_file = _lock(paths.image_records(config.root))
        self.content = Content(config.root)
        self.store = Store(paths.image_records(config.root) / "images.db")
        self._client = UnpackClient(paths.unpack_socket(config.state))
        leases = Leases()
        gatekeeper = Gatekeeper(config.state, config.images.key_model)
        snapshotters = Snapshotters(config.images.snapshotter, config.root, self._client)
        catalogue = Catalogue(self.store, config.images.pinned_images.values())
        self._collector = Collector(
            self.store,
            self.content,
            self._client,
            leases,
            discard_unpacked_layers=config.images.discard_unpacked_layers,
        )
        self._usage = ContainerUsage(self.store, snapshotters.get(), config.images.stats_collect_period)
        puller = puller or Puller(config, self.content, self.store, self._client, gatekeeper, leases)
        self._cri = CriImages(config, catalogue, puller, self.store, self.content, self._collector, self._usage)
        self._images = RunImages(
            config, catalogue, self.store, self.content, snapshotters, gatekeeper, self._collector, leases
        )
        self._server: grpc.Server | None = None
        self._recovered = threading.Event()

    def start(self) -> None:
        """Recover, serve and begin the background work."""
        self._collector.recover_blobs()
        socket = paths.service_socket(self._config.state, "image-svc")
        self._server = rpc.server(self._register, str(socket), SOCKET_MODE)
        self._usage.start()
        threading.Thread(target=self._recover, name="recover", daemon=True).start()
        metrics.serve("image-svc", self._not_ready, port=self._config.bulkhead.metrics_ports.get("image-svc", 0))
        logger.info("serving", extra={"socket": str(socket), "root": str(self._config.root)})

    def stop(self) -> None:
        """Refuse new calls, let the short ones end, call the pulls off, close the store."""
        if self._server is not None:
            self._server.stop(GRACE).wait(GRACE + 1.0)
        self._usage.stop()
        self._collector.stop()
        self.store.close()
        os.close(self._lock_file)

    def _register(self, server: grpc.Server) -> None:
        add_ImageServiceServicer_to_server(self._cri, server)
        add_ImagesServicer_to_server(self._images, server)

    def _recover(self) -> None:
        """Clear away what a crash left, as soon as the unpack helper is there, then collect in the background."""
        while not self._recovered.is_set():
            try:
                self._collector.recover_directories()
                self._recovered.set()
            except BulkheadError as error:
                logger.info("waiting to recover: %s", error)
                if self._recovered.wait(1.0):
                    return
        self._collector.start()
        self._collector.kick()

    def _not_ready(self) -> list[str]:
        try:
            self._client.ping(timeout=2.0)
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
