"""What lies behind a name in the content store: an index or a manifest, the platforms it offers, their blobs."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bulkhead.errors import BulkheadError, FailedPrecondition, NotFound
from image_svc.ingest import Content
from image_svc.oci import digests, media, platforms
from image_svc.oci.manifest import CONFIG_LIMIT, LAYER_LIMIT, descriptor, kind_of, load_json
from image_svc.oci.platforms import Platform
from image_svc.registry.repository import MANIFEST_LIMIT, Descriptor

#: Indexes within indexes.
_DEPTH = 4
#: Manifests of one target; no registry has an image of more than some dozens of platforms.
_ENTRIES = 1000
#: Bytes of the documents that are kept parsed, which takes some ten times as much, and of the largest among them.
_CACHE, _CACHED = 4 << 20, 256 << 10


@dataclass(frozen=True)
class Variant:
    """One manifest of a target: the image of a platform, or an attachment such as an attestation."""

    descriptor: Descriptor
    #: None for an attachment.
    platform: Platform | None
    #: None where the manifest itself is not here.
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The manifest and what it refers to, as far as it is known; each blob once."""
        all_of_them = [self.descriptor, *([self.config] if self.config else []), *self.layers]
        return tuple({each.digest: each for each in all_of_them}.values())

    @property
    def known(self) -> bool:
        """Whether the manifest is here."""
        return self.config is not None


@dataclass(frozen=True)
class Tree:
    """A target and its variants."""

    target: Descriptor
    #: The target and the indexes within it; empty if the target is a manifest.
    indexes: tuple[Descriptor, ...]
    variants: tuple[Variant, ...]

    @property
    def images(self) -> list[Variant]:
        """The variants that are images."""
        return [each for each in self.variants if each.platform is not None]

    def choose(self, host: Platform) -> Variant | None:
        """Return the image that fits a machine best."""
        found = self.images
        position = platforms.choose([each.platform for each in found], host)
        return None if position is None else found[position]

    def select(self, wanted: Iterable[Platform], where: str) -> list[Variant]:
        """Return the images of exactly those platforms; NotFound lists what is offered."""
        chosen: list[Variant] = []
        for platform in wanted:
            fitting = [each for each in self.images if each.platform and fits(each.platform, platform)]
            if not fitting:
                offered = ", ".join(str(each.platform) for each in self.images) or "nothing"
                raise NotFound(f"{where}: no image for platform {platform}; there are {offered}")
            chosen += [each for each in fitting if each not in chosen]
        return chosen


@dataclass
class _Walk:
    """What was met on the way through a target: each document is followed once, however often it is named."""

    indexes: dict[str, Descriptor] = field(default_factory=dict)
    #: Configuration and layers by manifest.
    manifests: dict[str, tuple[Descriptor, tuple[Descriptor, ...]]] = field(default_factory=dict)
    entries: int = 0


def fits(offered: Platform, wanted: Platform) -> bool:
    """Whether an image's platform is the one asked for; without a variant any will do."""
    same = (offered.os, offered.architecture) == (wanted.os, wanted.architecture)
    return same and (not wanted.variant or offered.variant == wanted.variant)


class Contents:
    """Reads documents of the content store, checked against their digests, and remembers what they said."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._lock = threading.Lock()
        self._parsed: dict[str, dict[str, Any]] = {}
        #: Bytes of what is in there, as text.
        self._kept = 0

    def json(self, digest: str, limit: int = MANIFEST_LIMIT) -> dict[str, Any]:
        """Return a document; NotFound if it is not here, DataLoss if it is damaged."""
        with self._lock:
            if digest in self._parsed:
                return self._parsed[digest]
        data = self.bytes(digest, limit)
        found = load_json(data, digest)
        if len(data) <= _CACHED:
            with self._lock:
                if self._kept > _CACHE:
                    self._parsed, self._kept = {}, 0
                self._parsed[digest] = found
                self._kept += len(data)
        return found

    def bytes(self, digest: str, limit: int = MANIFEST_LIMIT) -> bytes:
        """Return a document's bytes, as `json` does."""
        try:
            size = self._content.path(digest).stat().st_size
            if size > limit:
                raise FailedPrecondition(f"{digest}: {size} bytes, at most {limit} are allowed")
            data = self._content.read(digest)
        except FileNotFoundError as error:
            raise NotFound(f"{digest} is not in the content store") from error
        digests.verify(data, digest, "content store")
        return data

    def tree(self, target: str, media_type: str = "") -> Tree:
        """Return what a target offers; only the target itself must be here.

        FailedPrecondition for documents that are malformed, or name more than an image can have.
        """
        root, walk = self._descriptor(target, media_type), _Walk()
        if root.media_type in media.INDEXES:
            variants = self._index(root, walk, _DEPTH)
            return Tree(root, tuple(walk.indexes.values()), tuple(variants))
        return Tree(root, (), (self._variant(root, None, walk),))

    def config(self, variant: Variant) -> dict[str, Any]:
        """Return the configuration of an image whose manifest is here."""
        assert variant.config is not None
        return self.json(variant.config.digest, CONFIG_LIMIT)

    def missing(self, variant: Variant) -> list[str]:
        """Return the digests of the variant's blobs that are not here."""
        return [each.digest for each in variant.blobs if not self._content.has(each.digest)]

    def _descriptor(self, digest: str, media_type: str) -> Descriptor:
        kind = kind_of(self.json(digest), media_type, digest)
        return Descriptor(digest, self._content.path(digest).stat().st_size, kind)

    def _index(self, index: Descriptor, walk: _Walk, depth: int) -> list[Variant]:
        """Return the variants of an index, and add it and those within it to the walk's."""
        if not depth:
            raise FailedPrecondition(f"{index.digest}: indexes are nested more than {_DEPTH} deep")
        walk.indexes[index.digest] = index
        entries = self.json(index.digest).get("manifests")
        if not isinstance(entries, list):
            raise FailedPrecondition(f"{index.digest}: manifests is not a list")
        walk.entries += len(entries)
        if walk.entries > _ENTRIES:
            raise FailedPrecondition(f"{index.digest}: more than {_ENTRIES} manifests, counting those of other indexes")
        found: list[Variant] = []
        for number, entry in enumerate(entries):
            child = descriptor(entry, f"{index.digest}: manifests[{number}]")
            if child.media_type in media.INDEXES:
                if child.digest not in walk.indexes and self._content.has(child.digest):
                    found += self._index(child, walk, depth - 1)
                continue
            found.append(self._variant(child, entry.get("platform"), walk))
        return found

    def _variant(self, manifest: Descriptor, stated: object, walk: _Walk) -> Variant:
        """Return a manifest's variant; the platform is what the index states, else what the configuration does."""
        platform = _platform(stated)
        if not self._content.has(manifest.digest):
            return Variant(manifest, platform)
        if manifest.digest not in walk.manifests:
            walk.manifests[manifest.digest] = self._manifest(manifest.digest)
        config, layers = walk.manifests[manifest.digest]
        if stated is None and config.media_type in media.CONFIGS:
            platform = self._configured(config)
        return Variant(manifest, platform, config, layers)

    def _manifest(self, digest: str) -> tuple[Descriptor, tuple[Descriptor, ...]]:
        """Return the configuration and the layers of a manifest that is here."""
        tree = self.json(digest)
        config = descriptor(tree.get("config"), f"{digest}: config")
        entries = tree.get("layers", [])
        if not isinstance(entries, list) or len(entries) > LAYER_LIMIT:
            raise FailedPrecondition(f"{digest}: layers is not a list of at most {LAYER_LIMIT}")
        return config, tuple(descriptor(each, f"{digest}: layers[{number}]") for number, each in enumerate(entries))

    def _configured(self, config: Descriptor) -> Platform | None:
        try:
            return _platform(self.json(config.digest, CONFIG_LIMIT))
        except BulkheadError:
            return None


def _platform(value: object) -> Platform | None:
    """Return the platform of an index entry or a configuration; None where it names none, as attachments do."""
    if not isinstance(value, dict):
        return None
    parts = [value.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) and len(part) <= 32 and part.isascii() and part.isprintable() for part in parts):
        return None
    if not parts[0] or not parts[1] or "unknown" in parts[:2]:
        return None
    return platforms.normalize(*parts)
