"""Encrypted images whose key the node has no more: what was unpacked of them goes, what came encrypted stays."""

import time
from collections.abc import Collection, Iterable

from bulkhead.errors import FailedPrecondition
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto import keys_pb2
from image_svc.decryption.gatekeeper import Gatekeeper
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.purpose import Purpose
from image_svc.transfer.contents import Contents
from image_svc.transfer.incoming import held

#: How long the collector gets to remove what nothing needs, and how often it is looked, seconds.
_WAIT, _LOOK = 30.0, 0.05
_ANY_POD = Purpose(open=keys_pb2.Use.POD)


class Evictor:
    """Turns such images back into content."""

    def __init__(self, parts: Parts, contents: Contents) -> None:
        self._parts = parts
        self._contents = contents

    def evict(self, only: Collection[str], *, dry_run: bool, patience: Patience) -> pb.EvictResponse:
        """Check every encrypted manifest, or those given, for any pod at all, and drop what fails.

        Layers that a plain image or one with its keys needs stay, and those that containers use.
        """
        store = self._parts.store
        answer = pb.EvictResponse()
        before = {layer.chain_id for layer in store.unused_layers()}
        gone: dict[str, str] = {}
        for image in self._parts.catalogue.images():
            for manifest in sorted(image.encrypted):
                reason = self._refusal(image.id, manifest, patience) if not only or manifest in only else ""
                if reason:
                    names = [name for name, digest in image.manifests.items() if digest == manifest]
                    answer.images.append(self._evicted(manifest, names, reason, image.id))
                    gone[manifest] = reason
        layers = store.layers_of_only(gone)
        users = store.layer_users()
        if not dry_run:
            for each in answer.images:
                self._demote(each)
            self._parts.collector.kick()
            self._wait([chain for chain, _, _ in layers if not users.get(chain) and chain not in before])
        for chain, diff_id, size in layers:
            answer.layers.add(chain_id=chain, diff_id=diff_id, size=size, used_by=sorted(users.get(chain, ())))
        return answer

    def _refusal(self, image: str, manifest: str, patience: Patience) -> str:
        """Return why nobody on this node may use a manifest; "" if somebody may. Other failures are raised."""
        gatekeeper: Gatekeeper = self._parts.gatekeeper
        try:
            gatekeeper.check(image, _ANY_POD, self._parts.store.manifest_layers(manifest), patience)
        except FailedPrecondition as error:
            return str(error)
        return ""

    def _evicted(self, manifest: str, names: Iterable[str], reason: str, image: str) -> pb.EvictedImage:
        layers = self._parts.store.manifest_layers(manifest)
        blobs = [manifest, image, *(layer.digest for layer in layers)]
        kept = all(self._parts.content.has(digest) for digest in blobs)
        return pb.EvictedImage(names=sorted(names), manifest_digest=manifest, reason=reason, kept=kept)

    def _demote(self, image: pb.EvictedImage) -> None:
        """Make content of an image; one whose blobs are not all here is gone, since nothing could come of it."""
        targets = self._parts.store.targets()
        if not image.kept:
            self._parts.store.remove_names(image.names)
            return
        for name in image.names:
            tree = self._contents.tree(targets.get(name, image.manifest_digest))
            here = [each for each in tree.variants if each.known and not self._contents.missing(each)]
            self._parts.store.demote(name, tree.target.digest, held(tree, here))

    def _wait(self, chains: Collection[str]) -> None:
        """Wait for the collector; what a pull under way has claimed goes when that ends."""
        until = time.monotonic() + _WAIT
        while any(self._parts.store.layer(chain) for chain in chains) and time.monotonic() < until:
            time.sleep(_LOOK)
