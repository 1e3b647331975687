"""An image archive becomes images: read and checked as a whole first, unpacked and named after that."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bulkhead.errors import FailedPrecondition, NotFound, PermissionDenied
from image_svc.kubelet_errors import SignatureValidationFailed
from image_svc.oci import media
from image_svc.oci.platforms import Platform
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.pulling.progress import Progress
from image_svc.slots import Slots
from image_svc.transfer.archive import read
from image_svc.transfer.contents import Contents, Tree, Variant
from image_svc.transfer.layout import Incoming, Layouts
from image_svc.transfer.selection import Selection
from image_svc.transfer.staging import Staging, all_or_none, discard_leftovers

logger = logging.getLogger(__name__)

Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Options:
    """How somebody wants an archive to be taken in."""

    names: Sequence[str] = ()
    base_name: str = ""
    selection: Selection = field(default_factory=Selection)
    no_unpack: bool = False
    #: Where what runs here is unpacked; "" for the node's.
    snapshotter: str = ""


@dataclass(frozen=True)
class Taken:
    """An image that came in."""

    names: tuple[str, ...]
    target: str
    #: Why it is content only, if it is.
    warning: str = ""


@dataclass(frozen=True)
class _Plan:
    """What one image of an archive will be here."""

    incoming: Incoming
    tree: Tree
    #: Platforms to keep.
    kept: tuple[Variant, ...]
    #: The one to unpack.
    run: Variant | None


class Importer:
    """Takes archives in."""

    def __init__(self, parts: Parts, contents: Contents, host: Platform) -> None:
        self._parts = parts
        self._contents = contents
        self._host = host
        #: For whoever gives names: what another import gave meanwhile is nobody's to take back.
        self._naming = Slots(1)
        discard_leftovers(parts.content, parts.store)

    def run(self, blocks: Iterable[bytes], options: Options, patience: Patience, watch: Watch) -> list[Taken]:
        """Import every image of an archive; `watch` gets the progress of each that is unpacked.

        Whatever fails, or is killed, leaves no name that it gave, and what has none is the collector's.
        """
        parts = self._parts
        with parts.leases.lease() as lease:
            limits = parts.config.bulkhead
            staging = Staging(parts.content, parts.store, lease, patience, limits.unpack_max_bytes)
            archive = read(blocks, staging, parts.content, patience, limits.import_max_bytes)
            incoming = Layouts(archive, parts.content, staging, patience).images(options.names, options.base_name)
            plans = [self._plan(each, options) for each in incoming]
            patience.acquire(self._naming)
            try:
                with all_or_none(parts.store):
                    return [self._land(plan, options.snapshotter, patience, watch) for plan in plans]
            finally:
                self._naming.release()

    def _plan(self, incoming: Incoming, options: Options) -> _Plan:
        """Choose the platforms of one image; every blob of theirs must be here."""
        where = f"archive: {incoming.names[0]}"
        tree = self._contents.tree(incoming.target.digest, incoming.target.media_type)
        kept = self._kept(tree, options.selection, where)
        for variant in kept:
            missing = self._contents.missing(variant)
            if missing:
                raise FailedPrecondition(f"{where}: {variant.platform}: not in the archive: {', '.join(missing[:20])}")
        own = tree.choose(self._host)
        run = None if options.no_unpack else next((each for each in kept if each is own), None)
        return _Plan(incoming, tree, tuple(kept), run)

    def _kept(self, tree: Tree, selection: Selection, where: str) -> list[Variant]:
        if selection.all:
            here = [each for each in tree.variants if each.known]
            if not here:
                raise FailedPrecondition(f"{where}: the archive holds the manifest of no platform")
            return here
        if selection.platforms:
            return tree.select(selection.platforms, where)
        own = tree.choose(self._host)
        if own is None:
            # A manifest says nothing of its platform where the configuration is missing.
            configs = [each.config.digest for each in tree.variants if each.config and each.platform is None]
            if lost := [digest for digest in configs if not self._parts.content.has(digest)]:
                raise FailedPrecondition(f"{where}: not in the archive: {', '.join(lost)}")
            offered = ", ".join(str(each.platform) for each in tree.images) or "none that can run"
            text = f"{where}: no image for this machine's platform {self._host}; there are {offered}. "
            raise NotFound(f"{text}Ask for a platform, or for all of them, to keep it without running it")
        return [own]

    def _land(self, plan: _Plan, snapshotter: str, patience: Patience, watch: Watch) -> Taken:
        names = tuple(str(name) for name in plan.incoming.names)
        warning = ""
        unpacked = False
        if plan.run is not None:
            try:
                self._adopt(plan, snapshotter, patience, watch)
                unpacked = True
            except (FailedPrecondition, PermissionDenied) as error:
                if not is_encrypted(plan.run) or isinstance(error, SignatureValidationFailed):
                    raise
                warning = f"{names[0]} is kept, but not unpacked: {error}"
        elif not any(each.platform for each in plan.kept):
            warning = f"{names[0]} is kept: nothing of it can run"
        self._keep(plan, names, unpacked=unpacked)
        logger.info("image imported", extra={"reference": names[0], "digest": plan.tree.target.digest})
        return Taken(names, plan.tree.target.digest, warning)

    def _adopt(self, plan: _Plan, snapshotter: str, patience: Patience, watch: Watch) -> None:
        first, *others = plan.incoming.names
        progress = Progress(str(first))
        watch(progress)
        self._parts.puller.adopt(
            plan.tree.target, first, patience, progress=progress, snapshotter=snapshotter, provisional=True
        )
        if others and plan.run is not None:
            manifest, target = plan.run.descriptor.digest, plan.tree.target.digest
            names = [str(name) for name in others]
            if not self._parts.store.add_names(names, manifest, target):
                raise NotFound(f"{first} was removed while it was being imported")

    def _keep(self, plan: _Plan, names: tuple[str, ...], *, unpacked: bool) -> None:
        """Hold what the node would not keep for itself."""
        target = plan.tree.target.digest
        blobs = held(plan.tree, plan.kept)
        if not unpacked:
            self._parts.store.add_content(names, target, blobs, provisional=True)
        elif len(plan.kept) > 1:
            self._parts.store.hold(target, blobs)


def held(tree: Tree, variants: Iterable[Variant]) -> set[str]:
    """Return the digests that keep variants of a target whole."""
    documents = {tree.target.digest, *(each.digest for each in tree.indexes)}
    return documents | {blob.digest for variant in variants for blob in variant.blobs}


def is_encrypted(variant: Variant) -> bool:
    """Whether any layer of an image is."""
    return any(media.is_encrypted(layer.media_type) for layer in variant.layers)
