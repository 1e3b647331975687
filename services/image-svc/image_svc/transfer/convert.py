"""An image with other layers: the manifests and indexes above layers that were encrypted or decrypted.

What comes of it is an OCI image, whatever the source was, since Docker's manifests have no encrypted layers. Everything
that is not of the platforms or layers asked for stays as it is, byte for byte.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto import keys_pb2
from image_svc import threads
from image_svc.decryption.gatekeeper import ENCRYPTION
from image_svc.leases import Lease
from image_svc.oci import media
from image_svc.oci.platforms import Platform
from image_svc.oci.reference import Reference
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.pulling.progress import LayerProgress, Progress, PullState
from image_svc.transfer.ciphering import Ciphers, Target, Turned
from image_svc.transfer.contents import Contents, Tree, Variant
from image_svc.transfer.export import missing_text
from image_svc.transfer.incoming import held
from image_svc.transfer.selection import Selection
from image_svc.transfer.staging import Staging

#: Layers at the decryptor at a time: each keeps more than one of its threads busy.
_AT_ONCE = 2
_OCI_LAYER = "application/vnd.oci.image.layer."
_OCI_TYPES = {
    f"application/vnd.docker.image.rootfs.{docker}.tar{way}": f"{_OCI_LAYER}{oci}.tar{way.replace('.', '+')}"
    for docker, oci in (("diff", "v1"), ("foreign.diff", "nondistributable.v1"))
    for way in ("", ".gzip", ".zstd")
}

Watch = Callable[[Progress], None]
Turn = Callable[[Ciphers, Target, LayerProgress], Turned]


@dataclass(frozen=True)
class Order:
    """Which layers of which platforms of an image are to be turned, and what the result is called."""

    label: str
    tree: Tree
    #: The platform that the image is described by.
    main: Variant
    name: Reference
    selection: Selection = field(default_factory=Selection)
    #: Numbers from 0, or from -1 for the topmost; none means all.
    layers: tuple[int, ...] = ()
    #: A grant of root's at the decryptor.
    grant: str = ""


@dataclass(frozen=True)
class Converted:
    """A new image."""

    name: str
    target: str
    warning: str = ""


class Converter:
    """Makes images of images."""

    def __init__(self, parts: Parts, contents: Contents, host: Platform) -> None:
        self._parts = parts
        self._contents = contents
        self._host = host

    def encrypt(
        self, order: Order, recipients: Sequence[keys_pb2.Recipient], patience: Patience, watch: Watch
    ) -> Converted:
        """Encrypt layers, or have those that are encrypted wrapped for more; the result is kept as content."""

        def turn(ciphers: Ciphers, target: Target, shown: LayerProgress) -> Turned:
            return ciphers.encrypt(target, recipients, shown)

        with self._parts.leases.lease() as lease:
            variants, warning = self._chosen(order)
            tree = self._convert(order, variants, lambda _: True, turn, lease, patience, watch)
            self._parts.store.add_content([str(order.name)], tree.target.digest, self._held(tree))
        return Converted(str(order.name), tree.target.digest, warning)

    def decrypt(self, order: Order, patience: Patience, watch: Watch) -> Converted:
        """Decrypt layers; what is plain then and of this machine's platform is unpacked, as after an import."""

        def turn(ciphers: Ciphers, target: Target, shown: LayerProgress) -> Turned:
            return ciphers.decrypt(target, shown)

        with self._parts.leases.lease() as lease:
            variants, _ = self._chosen(order)
            tree = self._convert(order, variants, media.is_encrypted, turn, lease, patience, watch)
            own = tree.choose(self._host)
            blobs = self._held(tree)
            plain = own is not None and not any(media.is_encrypted(each.media_type) for each in own.layers)
            if own is not None and plain and not self._contents.missing(own):
                progress = Progress(str(order.name))
                watch(progress)
                self._parts.puller.adopt(tree.target, order.name, patience, progress=progress)
                self._parts.store.hold(tree.target.digest, blobs)
            else:
                self._parts.store.add_content([str(order.name)], tree.target.digest, blobs)
        return Converted(str(order.name), tree.target.digest)

    def _chosen(self, order: Order) -> tuple[list[Variant], str]:
        """Return the images to turn, which are here, and a warning about those that are not and were not asked for."""
        tree, wanted = order.tree, order.selection
        images = tree.images or [order.main]
        if wanted.default:
            chosen = [each for each in images if each.known and not self._contents.missing(each)]
            left = [str(each.platform) for each in images if each not in chosen]
            if chosen:
                warning = f"{order.name}: {', '.join(left)} are not here and stay as they were" if left else ""
                return chosen, warning
            chosen = [order.main]
        else:
            chosen = images if wanted.all else tree.select(wanted.platforms, order.label)
        for variant in chosen:
            if missing := self._contents.missing(variant):
                raise FailedPrecondition(missing_text(order.label, missing))
        return chosen, ""

    def _convert(
        self,
        order: Order,
        variants: Sequence[Variant],
        wanted: Callable[[str], bool],
        turn: Turn,
        lease: Lease,
        patience: Patience,
        watch: Watch,
    ) -> Tree:
        """Turn the layers, store the documents above them, and return the new tree; the lease holds all of it."""
        lease.claim(*(blob.digest for variant in order.tree.variants for blob in variant.blobs))
        by_variant = {
            variant: [target for target in self._targets(variant, order.layers) if wanted(target.media_type)]
            for variant in variants
        }
        variants = [variant for variant, found in by_variant.items() if found]
        targets = {target.layer.digest: target for found in by_variant.values() for target in found}
        if not targets:
            raise FailedPrecondition(f"{order.label}: there are no such layers, or none of them is encrypted")
        limit = self._parts.config.bulkhead.unpack_max_bytes
        staging = Staging(self._parts.content, self._parts.store, lease, patience, limit, what="layer")
        use = keys_pb2.Use(image=order.label, grant=order.grant)
        ciphers = Ciphers(self._parts, staging, use, patience)
        progress = Progress(str(order.name))
        shown = {digest: LayerProgress(digest, each.layer.size) for digest, each in targets.items()}
        progress.layers, progress.state = tuple(shown.values()), PullState.FETCHING
        watch(progress)
        with threads.Pool(_AT_ONCE, thread_name_prefix="cipher") as pool:
            try:
                jobs = {key: pool.submit(turn, ciphers, each, shown[key]) for key, each in targets.items()}
                turned = {digest: job.result() for digest, job in jobs.items()}
            except BaseException:
                patience.cancel()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        progress.state = PullState.COMMITTING
        made = _Documents(self._contents, staging).rewrite(order, variants, turned)
        progress.state = PullState.DONE
        return made

    def _targets(self, variant: Variant, numbers: Sequence[int]) -> list[Target]:
        """Return the layers of these numbers; InvalidArgument for one that the image does not have."""
        count = len(variant.layers)
        for number in numbers:
            if not -count <= number < count:
                raise InvalidArgument(f"layer {number}: {variant.platform} has {count} layers, numbered from 0")
        chosen = {number % count for number in numbers} or range(count)
        rootfs = self._contents.config(variant).get("rootfs")
        ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        diff_ids = ids if isinstance(ids, list) and len(ids) == count else [""] * count
        return [
            Target(layer, oci_type(layer.media_type), str(diff_ids[number]))
            for number, layer in enumerate(variant.layers)
            if number in chosen
        ]

    def _held(self, tree: Tree) -> set[str]:
        """Return what keeps everything of a tree that is here."""
        return held(tree, [each for each in tree.variants if each.known and not self._contents.missing(each)])


class _Documents:
    """Writes the documents above turned layers."""

    def __init__(self, contents: Contents, staging: Staging) -> None:
        self._contents = contents
        self._staging = staging

    def rewrite(self, order: Order, variants: Sequence[Variant], turned: Mapping[str, Turned]) -> Tree:
        """Store new manifests and the indexes above them; return what the new target offers."""
        changed: dict[str, tuple[str, int, str]] = {}
        # An index within an index comes after the one that it is in.
        for variant in variants:
            self._keep(changed, variant.descriptor.digest, media.OCI_MANIFEST, self._manifest(order, variant, turned))
        for index in reversed(order.tree.indexes):
            document = self._document(index.digest)
            entries = [_replaced(entry, changed) for entry in document["manifests"]]
            if entries != document["manifests"]:
                self._keep(changed, index.digest, media.OCI_INDEX, {**document, "manifests": entries})
        digest, _, kind = changed[order.tree.target.digest]
        return self._contents.tree(digest, kind)

    def _manifest(self, order: Order, variant: Variant, turned: Mapping[str, Turned]) -> dict[str, Any]:
        document = self._document(variant.descriptor.digest)
        count = len(document["layers"])
        chosen = {number % count for number in order.layers} or range(count)
        document["layers"] = [
            _layer(entry, turned.get(entry["digest"]) if number in chosen else None)
            for number, entry in enumerate(document["layers"])
        ]
        if document["config"]["mediaType"] == media.DOCKER_CONFIG:
            document["config"] = {**document["config"], "mediaType": media.OCI_CONFIG}
        return document

    def _document(self, digest: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._contents.bytes(digest))
        return found

    def _keep(self, changed: dict[str, tuple[str, int, str]], old: str, kind: str, document: Mapping[str, Any]) -> None:
        data = json.dumps({**document, "schemaVersion": 2, "mediaType": kind}, separators=(",", ":")).encode()
        changed[old] = (self._staging.document(data), len(data), kind)


def oci_type(media_type: str) -> str:
    """Return what OCI calls a layer of Docker's; other types are as they are."""
    return _OCI_TYPES.get(media_type, media_type)


def _layer(entry: dict[str, Any], turned: Turned | None) -> dict[str, Any]:
    """Return a layer's new descriptor."""
    if turned is None:
        return {**entry, "mediaType": oci_type(entry["mediaType"])}
    notes = {key: value for key, value in (entry.get("annotations") or {}).items() if not key.startswith(ENCRYPTION)}
    notes |= turned.annotations
    # The bytes are others now: those within the descriptor, or at other servers, are not they.
    rest = {key: value for key, value in entry.items() if key not in ("annotations", "data", "urls")}
    made = {**rest, "mediaType": turned.media_type, "digest": turned.digest, "size": turned.size}
    return {**made, "annotations": notes} if notes else made


def _replaced(entry: dict[str, Any], changed: Mapping[str, tuple[str, int, str]]) -> dict[str, Any]:
    """Return an index's entry, with another manifest if that has changed."""
    if entry["digest"] not in changed:
        return entry
    digest, size, kind = changed[entry["digest"]]
    rest = {key: value for key, value in entry.items() if key != "data"}
    return {**rest, "mediaType": kind, "digest": digest, "size": size}
