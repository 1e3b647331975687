"""The CRI's ImageService."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from bulkhead import rpc
from bulkhead.errors import InvalidArgument, NotFound
from bulkhead.proto.runtime.v1 import api_pb2
from bulkhead.proto.runtime.v1.api_pb2_grpc import ImageServiceServicer
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.purpose import Purpose
from image_svc.store import Image
from image_svc.unpack.client import Usage

#: Images in one message of StreamImages.
_BATCH = 500
#: Seconds that a proxy snapshotter is asked for.
_LOOK = 5.0
#: containerd, internal/cri/annotations.
RUNTIME_HANDLER = "io.containerd.cri.runtime-handler"


class CriImages(ImageServiceServicer):
    """Serves images to the kubelet."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def ListImages(
        self, request: api_pb2.ListImagesRequest, context: grpc.ServicerContext
    ) -> api_pb2.ListImagesResponse:
        """List every image, or the one that the filter names."""
        return api_pb2.ListImagesResponse(images=self._filtered(request.filter))

    def StreamImages(
        self, request: api_pb2.StreamImagesRequest, context: grpc.ServicerContext
    ) -> Iterator[api_pb2.StreamImagesResponse]:
        """List images in messages of a bounded size."""
        images = self._filtered(request.filter)
        for start in range(0, len(images), _BATCH):
            yield api_pb2.StreamImagesResponse(images=images[start : start + _BATCH])

    def _filtered(self, wanted: api_pb2.ImageFilter) -> list[api_pb2.Image]:
        if not wanted.image.image:
            return self._parts.catalogue.messages()
        found = self._parts.catalogue.try_find(wanted.image.image)
        return [self._parts.catalogue.message(found)] if found else []

    def ImageStatus(
        self, request: api_pb2.ImageStatusRequest, context: grpc.ServicerContext
    ) -> api_pb2.ImageStatusResponse:
        """Describe one image.

        CRI: "If the image is not present, returns a response with ImageStatusResponse.Image set to nil". For a runtime
        handler it is present if its snapshotter can have it, so that the kubelet pulls it again where it cannot.
        """
        found = self._parts.catalogue.try_find(_named(request.image))
        if found is None or not self._possible(found, request.image.runtime_handler, context):
            return api_pb2.ImageStatusResponse()
        response = api_pb2.ImageStatusResponse(image=self._parts.catalogue.message(found))
        if request.verbose:
            try:
                response.info["info"] = self._verbose(found)
            except NotFound:  # what a disk has lost is not present: the kubelet pulls it again
                return api_pb2.ImageStatusResponse()
        return response

    def _possible(self, image: Image, handler: str, context: grpc.ServicerContext) -> bool:
        if not handler:
            return True
        patience = Patience(rpc.remaining(context, _LOOK), f"status of image {image.id}")
        return self._parts.ready.possible(image, self._parts.config.snapshotter_of(handler), patience)

    def _verbose(self, image: Image) -> str:
        """Return what crictl inspecti shows: chain id and the image's configuration, under containerd's names.

        NotFound for a configuration that is damaged or gone; its image is forgotten.
        """
        spec = json.loads(self._parts.damage.configuration(image.id))
        info = {
            "chainID": image.chain_id,
            "imageSpec": spec,
            "manifests": sorted(set(image.manifests.values())),
            "encrypted": bool(image.encrypted),
        }
        return json.dumps(info)

    @rpc.long_call
    def PullImage(self, request: api_pb2.PullImageRequest, context: grpc.ServicerContext) -> api_pb2.PullImageResponse:
        """Pull an image and return its id; the pull ends when the caller hangs up."""
        image = _named(request.image)
        limit = rpc.remaining(context, self._parts.config.bulkhead.pull_timeout)
        patience = Patience(limit, f"pull of {image}")
        if not context.add_callback(patience.cancel):
            patience.cancel()
        self._parts.recovery.wait(patience)
        auth = request.auth if request.HasField("auth") else None
        purpose = Purpose.of(request.sandbox_config)
        snapshotter = self._parts.config.snapshotter_of(_handler(request))
        image_id = self._parts.puller.pull(image, auth, patience, purpose, snapshotter=snapshotter)
        self._parts.collector.kick()
        return api_pb2.PullImageResponse(image_ref=image_id)

    def RemoveImage(
        self, request: api_pb2.RemoveImageRequest, context: grpc.ServicerContext
    ) -> api_pb2.RemoveImageResponse:
        """Remove an image with all its names.

        CRI: "This call is idempotent, and must not return an error if the image has already been removed".
        """
        found = self._parts.catalogue.try_find(_named(request.image))
        if found is not None:
            self._parts.store.remove_names(found.names)
            self._parts.collector.kick()
        return api_pb2.RemoveImageResponse()

    def ImageFsInfo(
        self, request: api_pb2.ImageFsInfoRequest, context: grpc.ServicerContext
    ) -> api_pb2.ImageFsInfoResponse:
        """Say how much images (blobs, downloads under way, unpacked layers) and containers (writable layers) take."""
        now, config = time.time_ns(), self._parts.config
        writable, layers = self._parts.usage.by_snapshotter(), self._parts.store.proxied_usage()
        stored, partial = self._parts.store.usage(), self._parts.content.partial_usage()
        images = {"": (stored[0] + partial[0], stored[1] + partial[1]), **layers}
        response = api_pb2.ImageFsInfoResponse()
        # The node's own snapshotter first: the kubelet looks at the first of each kind.
        for name in sorted({*images, *writable}, key=lambda name: name != self._parts.snapshotters.default_proxy):
            root = (config.exports_of(name) if name else None) or config.root
            taken = writable.get(name, Usage(0, 0))
            response.image_filesystems.append(_filesystem(now, root, *images.get(name, (0, 0))))
            response.container_filesystems.append(_filesystem(now, root, taken.bytes, taken.inodes))
        return response


def _handler(request: api_pb2.PullImageRequest) -> str:
    """Return the runtime handler that an image is for: the CRI's word, or an annotation of kubelets without it."""
    return request.image.runtime_handler or request.sandbox_config.annotations.get(RUNTIME_HANDLER, "")


def _named(image: api_pb2.ImageSpec) -> str:
    if not image.image:
        raise InvalidArgument("image.image is empty; expected a name or an id")
    return image.image


def _filesystem(now: int, root: Path, used: int, inodes: int) -> api_pb2.FilesystemUsage:
    return api_pb2.FilesystemUsage(
        timestamp=now,
        fs_id=api_pb2.FilesystemIdentifier(mountpoint=str(root)),
        used_bytes=api_pb2.UInt64Value(value=used),
        inodes_used=api_pb2.UInt64Value(value=inodes),
    )
