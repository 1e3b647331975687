"""What lies behind a name in the content store: an index or a manifest, the platforms it offers, their blobs."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bulkhead.errors import BulkheadError, FailedPrecondition, NotFound
from image_svc import digests, media, platforms
from image_svc.ingest import Content
from image_svc.manifest import CONFIG_LIMIT, descriptor, kind_of, load_json
from image_svc.platforms import Platform
from image_svc.registry.repository import MANIFEST_LIMIT, Descriptor

#: Indexes within indexes.
_DEPTH = 4
#: Parsed documents in memory.
_CACHE = 2000


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

    def json(self, digest: str, limit: int = MANIFEST_LIMIT) -> dict[str, Any]:
        """Return a document; NotFound if it is not here, DataLoss if it is damaged."""
        with self._lock:
            if digest in self._parsed:
                return self._parsed[digest]
        data = self.bytes(digest, limit)
        found = load_json(data, digest)
        with self._lock:
            if len(self._parsed) >= _CACHE:
                self._parsed.clear()
            self._parsed[digest] = found
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
        """Return what a target offers; only the target itself must be here."""
        root = self._descriptor(target, media_type)
        if root.media_type in media.INDEXES:
            indexes: list[Descriptor] = []
            variants = self._index(root, indexes, _DEPTH)
            return Tree(root, tuple(indexes), tuple(variants))
        return Tree(root, (), (self._variant(root, None),))

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

    def _index(self, index: Descriptor, indexes: list[Descriptor], depth: int) -> list[Variant]:
        """Return the variants of an index, and add it and those within it to `indexes`."""
        if not depth:
            raise FailedPrecondition(f"{index.digest}: indexes are nested more than {_DEPTH} deep")
        indexes.append(index)
        entries = self.json(index.digest).get("manifests")
        if not isinstance(entries, list):
            raise FailedPrecondition(f"{index.digest}: manifests is not a list")
        found: list[Variant] = []
        for number, entry in enumerate(entries):
            child = descriptor(entry, f"{index.digest}: manifests[{number}]")
            if child.media_type in media.INDEXES:
                if self._content.has(child.digest):
                    found += self._index(child, indexes, depth - 1)
                continue
            found.append(self._variant(child, entry.get("platform")))
        return found

    def _variant(self, manifest: Descriptor, stated: object) -> Variant:
        """Return a manifest's variant; the platform is what the index states, else what the configuration does."""
        platform = _platform(stated)
        if not self._content.has(manifest.digest):
            return Variant(manifest, platform)
        tree = self.json(manifest.digest)
        where = manifest.digest
        config = descriptor(tree.get("config"), f"{where}: config")
        entries = tree.get("layers", [])
        if not isinstance(entries, list):
            raise FailedPrecondition(f"{where}: layers is not a list")
        layers = tuple(descriptor(each, f"{where}: layers[{number}]") for number, each in enumerate(entries))
        if stated is None and config.media_type in media.CONFIGS:
            platform = self._configured(config)
        return Variant(manifest, platform, config, layers)

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
