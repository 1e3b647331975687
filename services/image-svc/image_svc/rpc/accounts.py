"""What the store takes on disk, and which image is to blame for how much of it."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from bulkhead.errors import BulkheadError
from bulkhead.proto import images_pb2
from image_svc.parts import Parts
from image_svc.rpc.inventory import Entry, Inventory
from image_svc.transfer.contents import Contents
from image_svc.transfer.incoming import held


@dataclass(frozen=True)
class Share:
    """What one image needs, as keys of blobs (digests) and unpacked layers (chain ids), which never look alike."""

    entry: Entry
    blobs: frozenset[str]
    chains: frozenset[str]


class Accounts:
    """Adds up what images need."""

    def __init__(self, parts: Parts, contents: Contents, inventory: Inventory) -> None:
        self._parts = parts
        self._contents = contents
        self._inventory = inventory

    def shares(self) -> list[Share]:
        """Return what each image needs."""
        targets = self._parts.store.targets()
        return [self._share(entry, targets) for entry in self._inventory.entries()]

    def usages(self, shares: list[Share]) -> list[images_pb2.ImageUsage]:
        """Return for each share what others need as well, and what would go with it."""
        facts, blob_sizes = self._inventory.facts(), self._parts.store.blob_sizes()
        blobs = Counter(digest for share in shares for digest in share.blobs)
        chains = Counter(chain for share in shares for chain in share.chains)
        used = {chain for share in shares if share.entry.id in facts.users for chain in share.chains}
        made = []
        for share in shares:
            unique = _sum(blob_sizes, (each for each in share.blobs if blobs[each] == 1))
            unique += _sum(facts.layers, (each for each in share.chains if chains[each] == 1 and each not in used))
            whole = _sum(blob_sizes, share.blobs) + _sum(facts.layers, share.chains)
            summary = self._inventory.summary(share.entry, facts)
            made.append(images_pb2.ImageUsage(image=summary, unique=unique, shared=whole - unique))
        return made

    def freed(self, gone: list[Share], shares: list[Share]) -> int:
        """Return the bytes that become free when some of the shares go, none of which a container uses."""
        going = {id(share) for share in gone}
        stay = [share for share in shares if id(share) not in going]
        blobs = {each for share in gone for each in share.blobs} - {each for share in stay for each in share.blobs}
        chains = {each for share in gone for each in share.chains} - {each for share in stay for each in share.chains}
        store = self._parts.store
        return _sum(store.blob_sizes(), blobs) + _sum(store.layer_sizes(), chains)

    def usage(self) -> images_pb2.UsageResponse:
        """Return everything at once."""
        shares = self.shares()
        usages = self.usages(shares)
        unused = [share for share, each in zip(shares, usages, strict=True) if is_prunable(each.image)]
        blobs, layers = self._parts.store.blob_sizes(), self._parts.store.layer_sizes()
        writable = self._parts.usage.total()
        partial, partials = self._parts.content.partial_usage()
        disk = os.statvfs(self._parts.config.root)
        return images_pb2.UsageResponse(
            blobs=images_pb2.StoreUsage(count=len(blobs), bytes=sum(blobs.values())),
            layers=images_pb2.StoreUsage(count=len(layers), bytes=sum(layers.values())),
            containers=images_pb2.StoreUsage(count=len(self._parts.store.snapshots()), bytes=writable.bytes),
            partial=images_pb2.StoreUsage(count=partials, bytes=partial),
            reclaimable=self.freed(unused, shares),
            root=str(self._parts.config.root),
            filesystem_size=disk.f_blocks * disk.f_frsize,
            filesystem_free=disk.f_bavail * disk.f_frsize,
            images=usages,
        )

    def _share(self, entry: Entry, targets: dict[str, str]) -> Share:
        store = self._parts.store
        blobs: set[str] = {entry.id} - {""}
        chains: set[str] = set()
        for target in {targets.get(name, entry.target) for name in entry.names}:
            blobs |= {target, *store.held(target)}
        if entry.image is None:
            return Share(entry, frozenset(blobs | self._documents(entry)), frozenset())
        for manifest in set(entry.image.manifests.values()):
            layers = store.manifest_layers(manifest)
            blobs |= {manifest, *(layer.digest for layer in layers)}
            chains |= {layer.chain_id for layer in layers}
        return Share(entry, frozenset(blobs), frozenset(chains))

    def _documents(self, entry: Entry) -> set[str]:
        try:
            tree = self._inventory.tree(entry)
        except BulkheadError:
            return set()
        return held(tree, ())


def is_prunable(image: images_pb2.ImageSummary) -> bool:
    """Whether nothing keeps an image here: no container, no pin."""
    return not image.used_by and not image.pinned


def _sum(sizes: dict[str, int], keys: Iterable[str]) -> int:
    return sum(sizes.get(key, 0) for key in keys)
