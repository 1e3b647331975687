"""Pushes: the blobs of an image first, then its manifests, then what its name is to stand for."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bulkhead.errors import FailedPrecondition
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc import threads
from image_svc.oci.reference import Reference
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.pulling.progress import LayerProgress, LayerState, Progress, PullState
from image_svc.registry.push import Outcome, Pusher
from image_svc.registry.repository import Descriptor
from image_svc.transfer.contents import Contents, Tree, Variant
from image_svc.transfer.export import missing_text
from image_svc.transfer.selection import Selection

logger = logging.getLogger(__name__)

#: Blobs sent at once.
UPLOADS = 4

Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Parcel:
    """What is to be pushed where."""

    target: Reference
    tree: Tree
    #: The platform that the image is described by.
    main: Variant
    #: Further names of the image: repositories of the same registry may have its blobs.
    names: tuple[Reference, ...] = ()
    selection: Selection = field(default_factory=Selection)


@dataclass(frozen=True)
class Pushed:
    """What the name stands for at the registry now."""

    digest: str
    warning: str = ""


class Sender:
    """Pushes images of the content store."""

    def __init__(self, parts: Parts, contents: Contents) -> None:
        self._parts = parts
        self._contents = contents

    def push(self, parcel: Parcel, auth: AuthConfig | None, patience: Patience, watch: Watch) -> Pushed:
        """Push an image whole if it is here whole, else the platform that is; `watch` gets the progress."""
        with self._parts.leases.lease() as lease:
            variants, top, warning = self._what(parcel)
            lease.claim(*(blob.digest for variant in variants for blob in variant.blobs))
            for variant in variants:
                if missing := self._contents.missing(variant):
                    raise FailedPrecondition(missing_text(str(parcel.target), missing))
            progress = Progress(str(parcel.target))
            watch(progress)
            pusher = self._parts.registries.pusher(parcel.target, auth)
            with pusher.held():
                self._blobs(parcel, variants, pusher, patience, progress)
                progress.state = PullState.COMMITTING
                digest = self._manifests(parcel, variants, top, pusher, patience)
            progress.state = PullState.DONE
        logger.info("image pushed", extra={"reference": str(parcel.target), "digest": digest, "host": pusher.origin})
        return Pushed(digest, warning)

    def _what(self, parcel: Parcel) -> tuple[list[Variant], bytes | None, str]:
        """Return the manifests to push, the index to put above them if any, and what the caller should know."""
        tree, wanted = parcel.tree, parcel.selection
        if not tree.indexes:
            return (
                list(tree.select(wanted.platforms, str(parcel.target)) if wanted.platforms else [parcel.main]),
                None,
                "",
            )
        index = self._contents.bytes(tree.target.digest)
        if wanted.platforms:
            chosen = tree.select(wanted.platforms, str(parcel.target))
            return chosen, None if len(chosen) == 1 else _filtered(index, chosen), ""
        whole = all(variant.known and not self._contents.missing(variant) for variant in tree.variants)
        if whole or wanted.all:
            return list(tree.variants), index, ""
        text = (
            f"{parcel.target} stands for {parcel.main.platform} alone: of its {len(tree.images)} platforms not all are "
            "here (pull all platforms to push them)"
        )
        return [parcel.main], None, text

    def _blobs(
        self, parcel: Parcel, variants: Sequence[Variant], pusher: Pusher, patience: Patience, progress: Progress
    ) -> None:
        wanted = {
            blob.digest: blob
            for variant in variants
            for blob in variant.blobs
            if blob.digest != variant.descriptor.digest
        }
        shown = [LayerProgress(digest, blob.size) for digest, blob in wanted.items()]
        progress.layers, progress.state = tuple(shown), PullState.FETCHING
        target = parcel.target
        others = [name.path for name in parcel.names if name.domain == target.domain and name.path != target.path]

        def send(layer: LayerProgress) -> None:
            self._send(wanted[layer.digest], layer, pusher, patience, others)

        with threads.Pool(UPLOADS, thread_name_prefix="push") as pool:
            try:
                for job in [pool.submit(send, layer) for layer in shown]:
                    job.result()
            except BaseException:
                patience.cancel()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _send(
        self, blob: Descriptor, layer: LayerProgress, pusher: Pusher, patience: Patience, others: Sequence[str]
    ) -> None:
        def moved(done: int) -> None:
            layer.received = done

        layer.state = LayerState.DOWNLOADING
        try:
            path = self._parts.content.path(blob.digest)
            outcome = pusher.blob(blob, path, patience, mount_from=others, progress=moved)
        except BaseException:
            layer.state = LayerState.FAILED
            raise
        layer.received = blob.size
        layer.state = LayerState.UNPACKED if outcome is Outcome.UPLOADED else LayerState.PRESENT

    def _manifests(
        self, parcel: Parcel, variants: Sequence[Variant], top: bytes | None, pusher: Pusher, patience: Patience
    ) -> str:
        tag = parcel.target.tag
        for variant in variants:
            data = self._contents.bytes(variant.descriptor.digest)
            # An index's entry knows its type; a lone manifest's was found out when the tree was read.
            kind = variant.descriptor.media_type or "application/vnd.oci.image.manifest.v1+json"
            digest = pusher.manifest(data, kind, patience, tag="" if top is not None else tag)
        if top is None:
            return digest
        for inner in reversed(parcel.tree.indexes[1:]):
            pusher.manifest(self._contents.bytes(inner.digest), inner.media_type, patience)
        return pusher.manifest(top, parcel.tree.target.media_type, patience, tag=tag)


def _filtered(index: bytes, chosen: Sequence[Variant]) -> bytes:
    """Return the index with only some of its entries."""
    keep = {variant.descriptor.digest for variant in chosen}
    document = json.loads(index)
    document["manifests"] = [entry for entry in document["manifests"] if entry["digest"] in keep]
    return json.dumps(document, separators=(",", ":")).encode()
