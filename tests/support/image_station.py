"""image-svc with its servers and a stand-in for its helper, and the command line that talks to it."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bulkhead import paths, rpc
from bulkhead.cli.__main__ import main
from bulkhead.config.model import Bulkhead, Config, Images, Registry
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto.images_pb2_grpc import ImagesStub, ManagementStub
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1.api_pb2_grpc import ImageServiceStub
from image_svc.parts import Parts
from image_svc.service import Service
from image_svc.unpack.client import UnpackClient
from support.fake_registry import FakeUnpack


@dataclass
class Ran:
    """What a command came to."""

    status: int
    out: str
    err: str


@dataclass
class Station:
    """A running service in this process."""

    socket: Path
    service: Service
    unpack: FakeUnpack

    def __post_init__(self) -> None:
        self.channel = rpc.channel(str(self.socket))
        self.stub = ManagementStub(self.channel)
        self.cri = ImageServiceStub(self.channel)
        self.run = ImagesStub(self.channel)

    @property
    def parts(self) -> Parts:
        """The service's own parts."""
        return self.service._parts

    def images(self, *arguments: str) -> Ran:
        """Run `bulkhead images` in this process."""
        out, err = io.StringIO(), io.StringIO()
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = out, err
        try:
            verb, *rest = arguments
            status = main(["images", verb, "--socket", str(self.socket), *rest])
        except SystemExit as leave:
            status = int(str(leave.code or 0))
        finally:
            sys.stdout, sys.stderr = before
        return Ran(status, out.getvalue(), err.getvalue())

    def send(self, data: bytes, options: pb.ImportOptions | None = None, piece: int = 10_000) -> pb.TransferResult:
        """Import an archive in pieces and return the result."""

        def requests() -> Iterator[pb.ImportRequest]:
            yield pb.ImportRequest(options=options or pb.ImportOptions())
            for start in range(0, len(data), piece):
                yield pb.ImportRequest(data=data[start : start + piece])

        *_, last = self.stub.Import(requests(), timeout=60)
        return cast(pb.TransferResult, last.result)

    def export(self, *images: str, **fields: Any) -> bytes:
        """Export images and return the tar."""
        answers = self.stub.Export(pb.ExportRequest(images=images, **fields), timeout=60)
        return b"".join(answer.data for answer in answers)

    def listed(self) -> list[str]:
        """Return the names that the CRI lists."""
        found = self.cri.ListImages(cri.ListImagesRequest(), timeout=30).images
        return sorted(name for image in found for name in (*image.repo_tags, *image.repo_digests))

    def blobs(self) -> set[str]:
        """Return the digests on disk, after a collection, and after the one that the service may be at."""
        self.parts.collector.collect()
        until = time.monotonic() + 60
        store, content = self.parts.store, self.parts.content
        # The service's own collection takes a blob first, then its record, then its file.
        while (store.unused_blobs() or set(content.digests()) - store.blobs()) and time.monotonic() < until:
            time.sleep(0.01)
        return set(content.digests())


@contextmanager
def station(
    root: Path,
    bulkhead: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    helper: FakeUnpack | None = None,
    **images: Any,
) -> Iterator[Station]:
    """Run the service below `root`.

    Keywords are options of the configuration's images, `bulkhead` of its own table; `config` is other tables.
    """
    options = {"registry": Registry(config_path=()), **images}
    own = Bulkhead(metrics_ports={"image-svc": -1}, **(bulkhead or {}))
    made_of = Config(root=root, state=root, images=Images(**options), bulkhead=own, **(config or {}))
    socket = paths.service_socket(root, "image-svc")
    socket.parent.mkdir(exist_ok=True)
    unpack = helper or FakeUnpack()
    service = Service(made_of, cast(UnpackClient, unpack))
    service.start()
    made = Station(socket, service, unpack)
    try:
        yield made
    finally:
        made.channel.close()
        service.stop()
