"""Indexes, manifests and image configurations: read strictly enough to act on, with errors that name the field."""

import json
import re
from dataclasses import dataclass
from typing import Any

from bulkhead.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from image_svc.oci import digests, media, platforms
from image_svc.oci.platforms import Platform
from image_svc.registry.repository import Descriptor

CONFIG_LIMIT = 8 << 20
#: Layers of one image: overlayfs stacks 500, and no builder makes more than 127.
LAYER_LIMIT = 500
#: Beyond this many bytes JSON's numbers are not exact, and sums no longer fit SQLite's.
SIZE_LIMIT = 1 << 53
#: Characters of a configuration's User, which stands in every list of images.
USER_LIMIT = 256


@dataclass(frozen=True)
class Manifest:
    """One platform's image: its configuration and its layers, base first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes of configuration and layers as the registry stores them."""
        return self.config.size + sum(layer.size for layer in self.layers)

    @property
    def encrypted(self) -> bool:
        """Whether any layer is."""
        return any(media.is_encrypted(layer.media_type) for layer in self.layers)


@dataclass(frozen=True)
class ImageConfig:
    """What a pull needs of an image's configuration."""

    diff_ids: tuple[str, ...]
    platform: Platform
    user: str


def load_json(data: bytes, where: str) -> dict[str, Any]:
    """Return a JSON object; FailedPrecondition for anything else."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FailedPrecondition(f"{where}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise FailedPrecondition(f"{where}: JSON {type(tree).__name__}, expected an object")
    return tree


def kind_of(tree: dict[str, Any], media_type: str, where: str) -> str:
    """Return the media type of a manifest or index: the document's own, else the one it was served with.

    Two types that contradict each other are refused (OCI image-spec, manifest.md: they must match), and so is a
    document that could be read as both (CVE-2021-41190).
    """
    own = tree.get("mediaType", "")
    if not isinstance(own, str):
        raise FailedPrecondition(f"{where}: mediaType {str(own)[:100]!r} is not a string")
    media.check_not_schema_1(own, tree.get("schemaVersion"), where)
    media.check_not_schema_1(media_type, tree.get("schemaVersion"), where)
    known = media.INDEXES | media.MANIFESTS
    if own and media_type in known and own != media_type:
        raise FailedPrecondition(f"{where}: served as {media_type}, but says it is {own!r}")
    if "manifests" in tree and ("config" in tree or "layers" in tree):
        raise FailedPrecondition(f"{where}: reads as an index and as a manifest at once")
    kind = own or media_type
    if kind not in known:
        # An old OCI document carries no type, and registries may serve one as application/json.
        if own or media_type not in ("application/json", "application/octet-stream", "text/plain", ""):
            raise FailedPrecondition(f"{where}: unknown manifest media type {str(kind)[:200]!r}")
        kind = media.OCI_INDEX if "manifests" in tree else media.OCI_MANIFEST
    return str(kind)


def descriptor(value: object, where: str) -> Descriptor:
    """Return a checked content descriptor (OCI image-spec, descriptor.md)."""
    if not isinstance(value, dict):
        raise FailedPrecondition(f"{where}: expected a descriptor")
    size, kind = value.get("size"), value.get("mediaType", "")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < SIZE_LIMIT:
        raise FailedPrecondition(f"{where}: size {str(size)[:40]!r} is not a number of bytes")
    if not isinstance(kind, str):
        raise FailedPrecondition(f"{where}: mediaType {kind!r} is not a string")
    try:
        digest = digests.check(value.get("digest"), where)
    except InvalidArgument as error:
        raise FailedPrecondition(str(error)) from error
    notes = value.get("annotations") or {}
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise FailedPrecondition(f"{where}: annotations are not strings")
    return Descriptor(digest, size, kind, dict(notes))


def choose(tree: dict[str, Any], host: Platform, where: str) -> Descriptor:
    """Return the entry of an index that fits the host best; NotFound lists the platforms offered."""
    entries = tree.get("manifests")
    if not isinstance(entries, list):
        raise FailedPrecondition(f"{where}: manifests is not a list")
    candidates, offers = [], []
    for number, entry in enumerate(entries):
        found = descriptor(entry, f"{where}: manifests[{number}]")
        # An index inside an index and attachments (attestations say unknown/unknown) are not images to choose.
        if found.media_type in media.MANIFESTS or not found.media_type:
            candidates.append(found)
            offers.append(_platform(entry.get("platform")))
    position = platforms.choose(offers, host)
    if position is None:
        offered = ", ".join(sorted({str(offer) for offer in offers if offer})) or "nothing"
        raise NotFound(f"{where}: no image for platform {host}; the index offers {offered}")
    return candidates[position]


def _platform(value: object) -> Platform | None:
    if not isinstance(value, dict):
        return None
    parts = [value.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(map(_is_word, parts)):
        return Platform("unknown", "unknown")
    return platforms.normalize(*parts)


def _is_word(value: object) -> bool:
    """Tell whether a value may name a part of a platform, and stand in a message."""
    return isinstance(value, str) and re.fullmatch(r"[0-9A-Za-z._-]{0,32}", value) is not None


def parse(tree: dict[str, Any], where: str) -> Manifest:
    """Return the descriptors of a manifest, every layer's media type checked by name."""
    config = descriptor(tree.get("config"), f"{where}: config")
    if config.media_type not in media.CONFIGS:
        text = f"{where}: config media type {config.media_type[:200]!r}: an artifact, not an image that can run"
        raise FailedPrecondition(text)
    entries = tree.get("layers", [])
    if not isinstance(entries, list):
        raise FailedPrecondition(f"{where}: layers is not a list")
    if len(entries) > LAYER_LIMIT:
        raise FailedPrecondition(f"{where}: {len(entries)} layers, at most {LAYER_LIMIT} are possible")
    layers = tuple(descriptor(entry, f"{where}: layers[{number}]") for number, entry in enumerate(entries))
    for number, layer in enumerate(layers):
        elsewhere = bool(entries[number].get("urls"))
        media.check_layer(layer.media_type, f"{where}: layers[{number}] {layer.digest}", elsewhere=elsewhere)
    if config.size > CONFIG_LIMIT:
        raise FailedPrecondition(f"{where}: config of {config.size} bytes, at most {CONFIG_LIMIT} are allowed")
    return Manifest(config, layers)


def parse_config(data: bytes, manifest: Manifest, host: Platform, where: str) -> ImageConfig:
    """Return diff ids, platform and user of an image configuration that belongs to the manifest."""
    tree = load_json(data, where)
    rootfs = tree.get("rootfs")
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(ids, list):
        ids = []
    if len(ids) != len(manifest.layers):
        raise DataLoss(f"{where}: {len(ids)} diff ids for {len(manifest.layers)} layers")
    try:
        checked = tuple(digests.check(each, f"{where}: diff_ids[{n}]") for n, each in enumerate(ids))
    except InvalidArgument as error:
        raise FailedPrecondition(str(error)) from error
    names = [tree.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(map(_is_word, names)):
        raise FailedPrecondition(f"{where}: os, architecture and variant are not words")
    platform = platforms.normalize(names[0] or host.os, names[1] or host.architecture, names[2])
    inner = tree.get("config")
    user = inner.get("User") if isinstance(inner, dict) else ""
    if not isinstance(user, str):
        user = ""
    if len(user) > USER_LIMIT or not user.isprintable():
        raise FailedPrecondition(f"{where}: User of {len(user)} characters is no name that a user can have")
    return ImageConfig(checked, platform, user)


def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the chain id of every layer, base first (OCI image-spec, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digests.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)
