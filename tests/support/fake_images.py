"""A stand-in for image-svc, for tests of sandbox-svc alone: two images, unpacked beforehand, one layer each."""

import hashlib
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bulkhead import paths, rpc
from bulkhead.errors import NotFound
from bulkhead.proto import images_pb2, images_pb2_grpc
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc
from support import images

PAUSE, BUSYBOX = "example.test/pause:1", "example.test/busybox:1"


@dataclass
class FakeImages:
    """Serves bulkhead.images.v1.Images and the PullImage of the CRI on image-svc's socket below `state`."""

    directory: Path
    state: Path
    #: What was asked, as (method, main argument).
    calls: list[tuple[str, str]] = field(default_factory=list)
    #: Every key that a snapshot was asked for: the ids of all pods and containers ever made.
    keys: set[str] = field(default_factory=set)
    #: References that Resolve does not know until they are pulled.
    absent: set[str] = field(default_factory=set)
    #: Called with the key before a snapshot is made; may raise.
    before_prepare: Any = None

    def start(self) -> "FakeImages":
        """Unpack the images and serve."""
        snapshots = self.directory / "snapshots"
        self._layers = {PAUSE: snapshots / "1" / "fs", BUSYBOX: snapshots / "2" / "fs"}
        if not self._layers[BUSYBOX].exists():
            _unpack(images.busybox_layer(), self._layers[BUSYBOX])
            pause = self._layers[PAUSE]
            pause.mkdir(parents=True)
            (pause / "pause").write_bytes(images.pause_binary())
            (pause / "pause").chmod(0o755)
        self._configs = {
            PAUSE: {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]}},
            BUSYBOX: {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"], "Volumes": {"/var/www": {}}},
            },
        }
        self._ids = {name: _digest(config) for name, config in self._configs.items()}
        socket = paths.service_socket(self.state, "image-svc")
        socket.parent.mkdir(parents=True, exist_ok=True)
        self._server = rpc.server(self._register, str(socket))
        return self

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop(0).wait(30)

    def _register(self, server: grpc.Server) -> None:
        images_pb2_grpc.add_ImagesServicer_to_server(_Images(self), server)
        cri_grpc.add_ImageServiceServicer_to_server(_Cri(self), server)

    def find(self, reference: str) -> str:
        """Return the name of an image by name or id."""
        for name, ident in self._ids.items():
            if reference in (name, ident, ident.removeprefix("sha256:")) and name not in self.absent:
                return name
        raise NotFound(f"image {reference!r} is not here")

    def describe(self, name: str) -> images_pb2.ResolveResponse:
        """Return what Resolve says of an image."""
        return images_pb2.ResolveResponse(
            image_id=self._ids[name],
            repo_tags=[name],
            repo_digests=[f"{name.rpartition(':')[0]}@{self._ids[name]}"],
            config_json=json.dumps(self._configs[name]).encode(),
            chain_id=self._ids[name],
            manifest_digest=self._ids[name],
        )

    def prepare(self, request: images_pb2.PrepareRequest) -> images_pb2.PrepareResponse:
        """Return an overlay mount over the image's one layer."""
        lower = self._layers[self.find(request.image_id)]
        place = self.directory / "snapshots" / request.key[:12]
        for name in ("fs", "work"):
            (place / name).mkdir(parents=True, exist_ok=True)
        options = [f"lowerdir={lower}", f"upperdir={place}/fs", f"workdir={place}/work"]
        mount = images_pb2.Mount(type="overlay", source="overlay", options=options)
        return images_pb2.PrepareResponse(mounts=[mount], upper_dir=str(place / "fs"))


class _Images(images_pb2_grpc.ImagesServicer):
    def __init__(self, fake: FakeImages) -> None:
        self.fake = fake

    def Resolve(self, request: Any, context: Any) -> Any:
        self.fake.calls.append(("Resolve", request.image))
        return self.fake.describe(self.fake.find(request.image))

    @rpc.long_call
    def Prepare(self, request: Any, context: Any) -> Any:
        self.fake.calls.append(("Prepare", request.key))
        self.fake.keys.add(request.key)
        if self.fake.before_prepare is not None:
            self.fake.before_prepare(request.key)
        return self.fake.prepare(request)

    def Remove(self, request: Any, context: Any) -> Any:
        self.fake.calls.append(("Remove", request.key))
        return images_pb2.RemoveResponse()

    def Retain(self, request: Any, context: Any) -> Any:
        self.fake.calls.append(("Retain", ",".join(request.keys)))
        return images_pb2.RetainResponse()


class _Cri(cri_grpc.ImageServiceServicer):
    def __init__(self, fake: FakeImages) -> None:
        self.fake = fake

    def PullImage(self, request: Any, context: Any) -> Any:
        self.fake.calls.append(("PullImage", request.image.image))
        self.fake.absent.discard(request.image.image)
        return cri.PullImageResponse(image_ref=self.fake.describe(self.fake.find(request.image.image)).image_id)


def _digest(config: dict[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(config).encode()).hexdigest()


def _unpack(layer: bytes, target: Path) -> None:
    target.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(target)], input=layer, check=True, timeout=60)
