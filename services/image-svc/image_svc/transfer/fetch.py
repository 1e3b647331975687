"""Pulls by hand: to run, as the CRI does, or to have: other platforms, and images that this node cannot unpack."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bulkhead.errors import BulkheadError, DataLoss, FailedPrecondition, NotFound, PermissionDenied
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc import telemetry, threads
from image_svc.kubelet_errors import SignatureValidationFailed
from image_svc.leases import Lease
from image_svc.oci import digests, media, reference
from image_svc.oci.platforms import Platform
from image_svc.oci.reference import Reference
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.pulling.layers import Pull
from image_svc.pulling.progress import LayerProgress, LayerState, Progress, PullState
from image_svc.purpose import Purpose
from image_svc.registry.repository import Descriptor, Repository
from image_svc.transfer.contents import Contents, Tree, Variant
from image_svc.transfer.incoming import held, is_encrypted
from image_svc.transfer.selection import Selection

logger = logging.getLogger(__name__)

#: Downloads of one such pull at once where the configuration sets no limit.
_UNLIMITED = 16

Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Wish:
    """What somebody wants pulled."""

    image: str
    auth: AuthConfig | None = None
    selection: Selection = field(default_factory=Selection)
    no_unpack: bool = False
    #: Keys that root lends to it.
    purpose: Purpose = field(default_factory=Purpose)
    #: Where what runs here is unpacked; "" for the node's.
    snapshotter: str = ""


@dataclass(frozen=True)
class Pulled:
    """A name that was pulled."""

    name: str
    target: str
    #: Why it is content only, if that was not asked for.
    warning: str = ""


class Fetcher:
    """Pulls images by hand."""

    def __init__(self, parts: Parts, contents: Contents, host: Platform) -> None:
        self._parts = parts
        self._contents = contents
        self._host = host

    def pull(self, wish: Wish, patience: Patience, watch: Watch) -> Pulled:
        """Pull what runs here as the CRI would, then what else was asked for.

        An encrypted image that this node has no key for is kept without being unpacked, for whoever brings a key.
        """
        name = reference.parse(wish.image)
        refusal: BulkheadError | None = None
        unpack = not wish.no_unpack and self._runs_here(wish.selection)
        with self._parts.leases.lease() as lease:
            if unpack:
                progress = Progress(str(name))
                watch(progress)
                try:
                    self._parts.puller.pull(
                        wish.image, wish.auth, patience, wish.purpose, progress=progress, snapshotter=wish.snapshotter
                    )
                except SignatureValidationFailed:
                    raise  # what a verifier rejects is not kept either
                except (FailedPrecondition, PermissionDenied) as error:
                    refusal = error
                else:
                    if wish.selection.default:
                        return Pulled(str(name), self._parts.store.targets().get(str(name), ""))
            return self._content(wish, name, lease, patience, watch, refusal, unpacked=unpack and refusal is None)

    def _runs_here(self, wanted: Selection) -> bool:
        """Whether the node's own platform is among those asked for."""
        same = [
            each
            for each in wanted.platforms
            if (each.os, each.architecture) == (self._host.os, self._host.architecture)
        ]
        return wanted.default or wanted.all or bool(same)

    def _content(
        self,
        wish: Wish,
        name: Reference,
        lease: Lease,
        patience: Patience,
        watch: Watch,
        refusal: BulkheadError | None,
        *,
        unpacked: bool,
    ) -> Pulled:
        progress = Progress(str(name))
        with self._parts.puller.pulls.shown(progress):
            watch(progress)
            repository = self._parts.registries.repository(name, wish.auth)
            with repository.held():
                fetch = _Fetch(self._parts, self._contents, repository, lease, patience, progress)
                tree, variants = fetch.documents(wish.selection, self._host)
                encrypted = any(is_encrypted(variant) for variant in variants)
                if refusal is not None and not encrypted:
                    raise refusal
                fetch.blobs(variants)
            progress.state = PullState.COMMITTING
            target = tree.target.digest
            if unpacked:
                self._parts.store.hold(target, held(tree, variants))
            else:
                by_digest = str(name.with_digest(target))
                names = (by_digest,) if name.digest else (str(name), by_digest)
                self._parts.store.add_content(names, target, held(tree, variants))
        warning = f"{name} is kept, but not unpacked: {refusal}" if refusal else ""
        logger.info("image content pulled", extra={"reference": str(name), "digest": target})
        return Pulled(str(name), target, warning)


class _Fetch:
    """Brings the blobs of one name into the content store."""

    def __init__(
        self,
        parts: Parts,
        contents: Contents,
        repository: Repository,
        lease: Lease,
        patience: Patience,
        progress: Progress,
    ) -> None:
        self._parts = parts
        self._contents = contents
        self._repository = repository
        self._lease = lease
        self._patience = patience
        self._progress = progress

    def documents(self, wanted: Selection, host: Platform) -> tuple[Tree, list[Variant]]:
        """Fetch what the name stands for and the manifests asked for; return them."""
        where = str(self._repository.reference)
        target = self._repository.resolve(self._patience)
        self._document(target)
        tree = self._contents.tree(target.digest, target.media_type)
        chosen = _chosen(tree, wanted, host, where)
        for variant in chosen:
            self._document(variant.descriptor)
        manifests = {variant.descriptor.digest for variant in chosen}
        tree = self._contents.tree(target.digest, target.media_type)
        found = [variant for variant in tree.variants if variant.descriptor.digest in manifests]
        for variant in found:
            for layer in variant.layers:
                if variant.platform is not None:
                    media.check_layer(layer.media_type, f"{where}: {layer.digest}")
        return tree, found

    def blobs(self, variants: Iterable[Variant]) -> None:
        """Fetch configurations and layers, several at once."""
        wanted = {blob.digest: blob for variant in variants for blob in variant.blobs}
        self._lease.claim(*wanted)
        shown = [LayerProgress(digest, blob.size) for digest, blob in wanted.items()]
        self._progress.layers = tuple(shown)
        self._progress.state = PullState.FETCHING
        name = str(self._repository.reference)
        pull = self._parts.layer_puller.pull_of(name, self._repository, self._patience, self._progress, Purpose())
        limit = self._parts.config.images.max_concurrent_downloads or _UNLIMITED
        with threads.Pool(limit, thread_name_prefix="fetch") as pool:
            try:
                for job in [pool.submit(self._blob, wanted[layer.digest], layer, pull) for layer in shown]:
                    job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._patience.cancel()
                raise
        self._parts.layer_puller.keep({digest: blob.size for digest, blob in wanted.items()}, pull)

    def _document(self, wanted: Descriptor) -> None:
        """Have a manifest or index in the content store, checked."""
        self._lease.claim(wanted.digest)
        try:
            self._contents.bytes(wanted.digest)
        except (NotFound, DataLoss):
            self._parts.content.remove(wanted.digest)
            data, _ = self._repository.manifest(wanted, self._patience)
            digests.verify(data, wanted.digest, str(self._repository.reference))
            self._parts.content.store(wanted.digest, data)
            self._parts.store.add_blob(wanted.digest, len(data))

    def _blob(self, wanted: Descriptor, shown: LayerProgress, pull: Pull) -> None:
        if self._parts.content.has(wanted.digest, wanted.size):
            shown.state, shown.received = LayerState.PRESENT, wanted.size
            return
        while not self._arrived(wanted, shown, pull):
            telemetry.RETRIES.labels("shared").inc()
        shown.received, shown.state = wanted.size, LayerState.UNPACKED

    def _arrived(self, wanted: Descriptor, shown: LayerProgress, pull: Pull) -> bool:
        """Download a blob, or wait for another pull that does; False if that failed, as ours need not."""
        with self._parts.layer_puller.downloading(wanted, pull, self._patience) as (job, mine):
            shown.state = LayerState.DOWNLOADING
            job.show(shown)
            try:
                self._patience.wait(job.future)
            except BulkheadError as error:
                if (
                    not mine
                    and not self._patience.cancelled
                    and self._patience.left
                    and not isinstance(error, DataLoss)
                ):
                    return False
                shown.state = LayerState.FAILED
                raise
        return True


def _chosen(tree: Tree, wanted: Selection, host: Platform, where: str) -> Sequence[Variant]:
    if wanted.all:
        return tree.variants
    if wanted.platforms:
        return tree.select(wanted.platforms, where)
    own = tree.choose(host)
    if own is None and not tree.indexes:
        return tree.variants
    return [own] if own is not None else tree.select([host], where)
