"""bulkhead.images.v1.Images: images as something to run."""

import time

import grpc

from bulkhead import rpc
from bulkhead.config.model import Config
from bulkhead.errors import FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto import images_pb2
from bulkhead.proto.images_pb2_grpc import ImagesServicer
from image_svc.catalogue import Catalogue
from image_svc.decryption import Gatekeeper
from image_svc.gc import Collector, remove_snapshot
from image_svc.ingest import Content
from image_svc.leases import Leases
from image_svc.snapshots import Prepared, Snapshotter
from image_svc.snapshotters import Snapshotters
from image_svc.store import Image, Snapshot, Store


class RunImages(ImagesServicer):
    """Serves images to sandbox-svc."""

    def __init__(
        self,
        config: Config,
        catalogue: Catalogue,
        store: Store,
        content: Content,
        snapshotters: Snapshotters,
        gatekeeper: Gatekeeper,
        collector: Collector,
        leases: Leases,
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._store = store
        self._content = content
        self._snapshotters = snapshotters
        self._gatekeeper = gatekeeper
        self._collector = collector
        self._leases = leases

    def Resolve(self, request: images_pb2.ResolveRequest, context: grpc.ServicerContext) -> images_pb2.ResolveResponse:
        """Find an image that is completely here."""
        if not request.image:
            raise InvalidArgument("image is empty; expected a name or an id")
        image = self._catalogue.find(request.image)
        manifest = _manifest_for(image, request.image)
        return images_pb2.ResolveResponse(
            image_id=image.id,
            repo_tags=image.repo_tags,
            repo_digests=image.repo_digests,
            config_json=self._content.read(image.id),
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
        image = self._catalogue.find(request.image_id)
        manifest = request.manifest_digest or _manifest_for(image, request.image_id)
        if manifest in image.encrypted:
            self._gatekeeper.check(image.id, request.pod, self._store.manifest_layers(manifest))
        with self._leases.lease() as lease:
            if image.chain_id:
                lease.claim(image.chain_id)
            return _plan(self._snapshot(request, image, manifest))

    def _snapshot(self, request: images_pb2.PrepareRequest, image: Image, manifest: str) -> Prepared:
        snapshotter = self._snapshotters.get(request.snapshotter)
        known = self._store.snapshot(request.key)
        if known is None:
            name = self._store.new_names(1)[0]
            new = Snapshot(request.key, name, snapshotter.name, image.id, manifest, image.chain_id)
            known = self._store.add_snapshot(new)
        if known.image_id != image.id:
            raise FailedPrecondition(f"snapshot {request.key!r} was made from image {known.image_id}, not {image.id}")
        chain = self._store.chain(known.chain_id)
        if chain is None:
            raise FailedPrecondition(f"image {image.id}: a layer is missing; pull the image again")
        prepared = self._snapshotters.get(known.snapshotter).prepare(str(known.name), [str(name) for name in chain])
        if self._store.snapshot(request.key) is None:
            # Removed while it was made: whoever asked for the removal must find it gone.
            snapshotter.remove(str(known.name))
            raise NotFound(f"snapshot {request.key!r} was removed while it was being prepared")
        return prepared

    @rpc.long_call
    def Remove(self, request: images_pb2.RemoveRequest, context: grpc.ServicerContext) -> images_pb2.RemoveResponse:
        """Drop a container's snapshot; an unknown key succeeds."""
        known = self._store.snapshot(request.key)
        if known is not None:
            remove_snapshot(self._store, self._snapshotters.get(known.snapshotter), known)
            self._collector.kick()
        return images_pb2.RemoveResponse()

    @rpc.long_call
    def Retain(self, request: images_pb2.RetainRequest, context: grpc.ServicerContext) -> images_pb2.RetainResponse:
        """Drop every snapshot made before this call whose key is not among those still used."""
        keys = set(request.keys)
        older = self._store.snapshots(before=time.time_ns())
        for snapshot in older:
            if snapshot.key not in keys:
                snapshotter: Snapshotter = self._snapshotters.get(snapshot.snapshotter)
                remove_snapshot(self._store, snapshotter, snapshot)
        self._collector.kick()
        return images_pb2.RetainResponse(missing=sorted(keys - {snapshot.key for snapshot in self._store.snapshots()}))


def _manifest_for(image: Image, text: str) -> str:
    """Return the manifest that a name stands for; by id an encrypted one if there is any, the stricter choice."""
    for name, manifest in image.manifests.items():
        if name == text:
            return manifest
    if len(set(image.manifests.values())) > 1 and image.encrypted and not _is_name(text):
        return min(image.encrypted)
    return next(iter(image.manifests.values()))


def _is_name(text: str) -> bool:
    return "/" in text or ":" in text.removeprefix("sha256:") or "@" in text


def _plan(prepared: Prepared) -> images_pb2.PrepareResponse:
    return images_pb2.PrepareResponse(
        mounts=[
            images_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in prepared.mounts
        ],
        upper_dir=prepared.upper_dir,
    )
