"""bulkhead.images.v1.Images: images as something to run."""

import logging
import time

import grpc

from bulkhead import rpc
from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto import images_pb2
from bulkhead.proto.images_pb2_grpc import ImagesServicer
from image_svc.oci import reference
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.purpose import Purpose
from image_svc.snapshots import Prepared
from image_svc.store import Image, Snapshot
from image_svc.upkeep.gc import remove_snapshot

logger = logging.getLogger(__name__)

#: Longest wait for what Prepare needs of other processes, seconds.
_PREPARE = 60.0


class RunImages(ImagesServicer):
    """Serves images to sandbox-svc."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def Resolve(self, request: images_pb2.ResolveRequest, context: grpc.ServicerContext) -> images_pb2.ResolveResponse:
        """Find an image that is completely here."""
        if not request.image:
            raise InvalidArgument("image is empty; expected a name or an id")
        image = self._parts.catalogue.find(request.image)
        manifest = _manifest_for(image, request.image, request.user_specified_image)
        return images_pb2.ResolveResponse(
            image_id=image.id,
            repo_tags=image.repo_tags,
            repo_digests=image.repo_digests,
            config_json=self._parts.damage.configuration(image.id),
            chain_id=image.chain_id,
            manifest_digest=manifest,
            size=image.size,
            encrypted=manifest in image.encrypted,
            pinned=image.pinned,
        )

    @rpc.long_call
    def Prepare(self, request: images_pb2.PrepareRequest, context: grpc.ServicerContext) -> images_pb2.PrepareResponse:
        """Make a container's writable snapshot, or answer with the one made before."""
        if not request.key:
            raise InvalidArgument("key is empty; expected a container id")
        patience = Patience(rpc.remaining(context, _PREPARE), f"snapshot {request.key}")
        self._parts.recovery.wait(patience)
        image = self._parts.catalogue.find(request.image_id)
        manifest = request.manifest_digest or _manifest_for(image, request.image_id)
        if manifest in image.encrypted:
            layers = self._parts.store.manifest_layers(manifest)
            self._parts.gatekeeper.check(image.id, _purpose(request), layers, patience)
        self._parts.gate.prepared(image, manifest, patience)
        with self._parts.leases.lease() as lease:
            lease.claim(*(layer.chain_id for layer in self._parts.store.manifest_layers(manifest)))
            if self._parts.store.snapshot(request.key) is None:
                self._parts.ready.ensure(image, manifest, request.snapshotter, _purpose(request), patience)
            return _plan(self._snapshot(request, image, manifest))

    def _snapshot(self, request: images_pb2.PrepareRequest, image: Image, manifest: str) -> Prepared:
        snapshotter = self._parts.snapshotters.get(request.snapshotter)
        known = self._parts.store.snapshot(request.key)
        if known is None:
            name = self._parts.store.new_names(1)[0]
            new = Snapshot(request.key, name, snapshotter.name, image.id, manifest, image.chain_id)
            known = self._parts.store.add_snapshot(new)
        if known.image_id != image.id:
            raise FailedPrecondition(f"snapshot {request.key!r} was made from image {known.image_id}, not {image.id}")
        try:
            prepared = self._parts.snapshotters.prepare(known)
        except (NotFound, FailedPrecondition) as error:
            if image.id in self._parts.damage.layers():
                raise FailedPrecondition(f"image {image.id} has lost a layer; pull the image again") from error
            raise
        if self._parts.store.snapshot(request.key) is None:
            # Removed while it was made: whoever asked for the removal must find it gone.
            self._parts.snapshotters.remove(known)
            raise NotFound(f"snapshot {request.key!r} was removed while it was being prepared")
        return prepared

    @rpc.long_call
    def Remove(self, request: images_pb2.RemoveRequest, context: grpc.ServicerContext) -> images_pb2.RemoveResponse:
        """Drop a container's snapshot; an unknown key succeeds."""
        known = self._parts.store.snapshot(request.key)
        if known is not None:
            remove_snapshot(self._parts.store, self._parts.snapshotters, known)
            self._parts.collector.kick()
        return images_pb2.RemoveResponse()

    @rpc.long_call
    def Retain(self, request: images_pb2.RetainRequest, context: grpc.ServicerContext) -> images_pb2.RetainResponse:
        """Drop every snapshot whose key is not among those in use, unless it is newer than that list."""
        keys = set(request.keys)
        older = self._parts.store.snapshots(before=request.as_of or time.time_ns())
        for snapshot in older:
            if snapshot.key not in keys:
                self._drop(snapshot)
        self._parts.collector.kick()
        return images_pb2.RetainResponse(
            missing=sorted(keys - {snapshot.key for snapshot in self._parts.store.snapshots()})
        )

    def _drop(self, snapshot: Snapshot) -> None:
        """Remove a snapshot; one whose snapshotter does not answer stays until the next time, and in nobody's way."""
        try:
            remove_snapshot(self._parts.store, self._parts.snapshotters, snapshot)
        except BulkheadError as error:
            if self._parts.snapshotters.proxy(snapshot.snapshotter) is None:
                raise
            logger.warning("snapshot %s stays: %s", snapshot.key, error)


def _manifest_for(image: Image, *names: str) -> str:
    """Return the manifest that one of these names is of; an id alone means an encrypted one if there is any.

    That is the stricter choice: plain and encrypted images with the same content share their id.
    """
    for text in names:
        if named := image.manifests.get(reference.complete(text)):
            return named
    return min(image.encrypted or image.manifests.values())


def _purpose(request: images_pb2.PrepareRequest) -> Purpose:
    labels = dict(request.pod_labels)
    return Purpose(request.pod, request.namespace, request.service_account, labels, request.grant)


def _plan(prepared: Prepared) -> images_pb2.PrepareResponse:
    return images_pb2.PrepareResponse(
        mounts=[
            images_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in prepared.mounts
        ],
        upper_dir=prepared.upper_dir,
    )
