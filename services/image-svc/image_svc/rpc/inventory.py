"""Everything that is here under a name, as people see it: images that run, and content that is kept for others."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bulkhead.errors import BulkheadError, InvalidArgument, NotFound
from bulkhead.proto import images_pb2
from image_svc.oci import reference
from image_svc.oci.platforms import Platform
from image_svc.parts import Parts
from image_svc.store import ContentName, Image
from image_svc.transfer.contents import Contents, Tree, Variant
from image_svc.transfer.incoming import is_encrypted

_HEX = re.compile(r"(sha256:)?[0-9a-f]{3,64}")


@dataclass(frozen=True)
class Entry:
    """One image by one of its manifests."""

    #: The digest of the configuration; "" where that is not known.
    id: str
    names: tuple[str, ...]
    manifest: str
    #: What the names resolved to.
    target: str
    #: Nanoseconds since 1970.
    pulled_at: int
    #: None for content that is not unpacked.
    image: Image | None = None
    #: The name it was asked for by; "" if that was an id.
    asked: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """Names with a tag."""
        return tuple(name for name in self.names if "@" not in name)

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return self.asked or next(iter(self.names), self.id or self.target)


@dataclass(frozen=True)
class Facts:
    """What every description needs of the store, read once for all of them."""

    targets: dict[str, str]
    pulled_at: dict[str, int]
    #: Bytes of unpacked layers by chain id.
    layers: dict[str, int]
    #: Keys of containers and pods by the image they are made of.
    users: dict[str, list[str]]


class Inventory:
    """Lists entries, finds them, and describes them."""

    def __init__(self, parts: Parts, contents: Contents, host: Platform) -> None:
        self._parts = parts
        self._contents = contents
        self._host = host

    def facts(self) -> Facts:
        """Return how things are now."""
        store = self._parts.store
        users: dict[str, list[str]] = {}
        for snapshot in store.snapshots():
            users.setdefault(snapshot.image_id, []).append(snapshot.key)
        return Facts(store.targets(), store.pulled_at(), store.layer_sizes(), users)

    def entries(self) -> list[Entry]:
        """Return everything that has a name, what came last at the end."""
        targets, pulled = self._parts.store.targets(), self._parts.store.pulled_at()
        found = [self._of_image(image, targets, pulled) for image in self._parts.catalogue.images()]
        found += self._contents_entries()
        return sorted(found, key=lambda entry: (entry.pulled_at, entry.label))

    def find(self, text: str) -> Entry:
        """Return what an id, a unique prefix of one, a name or a digest stands for; NotFound names the text.

        A name chooses among the manifests of an image that was pulled in several forms, and comes before a prefix.
        """
        if not text:
            raise InvalidArgument("image is empty; expected a name or an id")
        if not _HEX.fullmatch(text):
            reference.parse(text)
        name, content = reference.complete(text), self._contents_entries()
        called = next((entry for entry in content if name in entry.names), None)
        if called is not None and not text.startswith("sha256:"):
            return replace(called, asked=name)
        image = self._parts.catalogue.try_find(text)
        matches = [] if image is not None and name in image.manifests else self._by_digest(text, content)
        if image is not None:
            targets = self._parts.store.targets()
            entry = self._of_image(image, targets, self._parts.store.pulled_at())
            if name in image.manifests:
                return _by_name(entry, image, name, targets)
            # Content with the same id is the same image in another form.
            matches = [entry, *(each for each in matches if each.id != entry.id)]
        if len(matches) > 1:
            raise InvalidArgument(f"{text!r} is the beginning of {len(matches)} ids or digests")
        if not matches:
            taken_for = "" if _HEX.fullmatch(text) or name == text else f": nothing is called {name}"
            raise NotFound(f"image {text!r} is not here{taken_for}")
        return matches[0]

    def tree(self, entry: Entry) -> Tree:
        """Return what lies behind an entry; of an image whose index was lost, its manifest."""
        try:
            return self._contents.tree(entry.target)
        except NotFound:
            if entry.manifest == entry.target:
                raise
            return self._contents.tree(entry.manifest)

    def variant(self, entry: Entry, tree: Tree | None = None) -> Variant:
        """Return the manifest that an entry describes."""
        found = (tree or self.tree(entry)).variants
        chosen = next((each for each in found if each.descriptor.digest == entry.manifest), None)
        return chosen or self._contents.tree(entry.manifest).variants[0]

    def summaries(self, entries: Iterable[Entry]) -> list[images_pb2.ImageSummary]:
        """Describe entries."""
        facts = self.facts()
        return [self.summary(entry, facts) for entry in entries]

    def summary(self, entry: Entry, facts: Facts | None = None) -> images_pb2.ImageSummary:
        """Describe an entry; what cannot be read of it any more is left out."""
        facts = facts or self.facts()
        made = images_pb2.ImageSummary(
            id=entry.id,
            repo_tags=entry.tags,
            repo_digests=[name for name in entry.names if "@" in name],
            manifest_digest=entry.manifest,
            target_digest=entry.target,
            pulled_at=entry.pulled_at,
            unpacked=entry.image is not None,
            used_by=sorted(facts.users.get(entry.id, ())),
            targets={name: facts.targets[name] for name in entry.names if name in facts.targets},
        )
        if entry.image is not None:
            layers = self._parts.store.manifest_layers(entry.manifest)
            made.unpacked_size = sum(facts.layers.get(layer.chain_id, 0) for layer in layers)
            made.pinned = entry.image.pinned
            made.size = entry.image.size
            made.encrypted = bool(entry.image.encrypted)
        with suppress(BulkheadError):
            self._describe(made, entry)
        for name in entry.names if entry.image is not None else ():
            self._describe_other(made, entry, name, facts.targets)
        return made

    def _describe(self, made: images_pb2.ImageSummary, entry: Entry) -> None:
        tree = self.tree(entry)
        variant = self.variant(entry, tree)
        made.encrypted = made.encrypted or is_encrypted(variant)
        made.size = made.size or sum(blob.size for blob in variant.blobs)
        made.platforms.extend(self._platforms(entry, tree, variant))
        if not variant.known:
            return
        config = self._contents.config(variant)
        made.created_at = _nanoseconds(config.get("created"))
        inner = config.get("config")
        labels = inner.get("Labels") if isinstance(inner, dict) else None
        made.labels.update(_texts(labels))

    def _describe_other(self, made: images_pb2.ImageSummary, entry: Entry, name: str, targets: dict[str, str]) -> None:
        """Describe what another name of an image offers; one may stand for an index, another for a manifest of it."""
        assert entry.image is not None
        other = _by_name(entry, entry.image, name, targets)
        if other.target == entry.target or other.target in made.target_platforms:
            return
        with suppress(BulkheadError):
            tree = self.tree(other)
            made.target_platforms[other.target].names.extend(self._platforms(other, tree, self.variant(other, tree)))

    def _platforms(self, entry: Entry, tree: Tree, variant: Variant) -> Iterable[str]:
        here = self._complete_platforms(entry, tree)
        if entry.image is not None and variant not in here:
            here.append(variant)  # its layers are unpacked, whatever became of their blobs
        return dict.fromkeys(str(each.platform) for each in here if each.platform)

    def _complete_platforms(self, entry: Entry, tree: Tree) -> list[Variant]:
        """Return the images of a target that are here to stay, not what the collector has not come to yet."""
        kept = {entry.manifest, *self._parts.store.held(entry.target)}
        found = [each for each in tree.images if each.known and each.descriptor.digest in kept]
        return [each for each in found if not self._contents.missing(each)]

    def _of_image(self, image: Image, targets: dict[str, str], pulled: dict[str, int]) -> Entry:
        name = image.names[0]
        manifest = image.manifests[name]
        return Entry(image.id, image.names, manifest, targets.get(name, manifest), pulled.get(image.id, 0), image)

    def _contents_entries(self) -> list[Entry]:
        grouped: dict[str, list[ContentName]] = {}
        for row in self._parts.store.content_names():
            grouped.setdefault(row.target, []).append(row)
        return [self._of_content(target, rows) for target, rows in grouped.items()]

    def _of_content(self, target: str, rows: Iterable[ContentName]) -> Entry:
        names = tuple(row.name for row in rows)
        at = max(row.created_at for row in rows)
        try:
            tree = self._contents.tree(target)
        except BulkheadError:
            return Entry("", names, target, target, at)
        kept = self._parts.store.held(target)
        here = [each for each in tree.variants if each.known and each.descriptor.digest in kept]
        main = tree.choose(self._host)
        if main not in here:
            main = next((each for each in here if each.platform), next(iter(here), None))
        if main is None or main.config is None:
            return Entry("", names, target, target, at)
        return Entry(main.config.digest, names, main.descriptor.digest, target, at)

    def _by_digest(self, text: str, content: list[Entry]) -> list[Entry]:
        """Return the entries that a digest, or the beginning of an id, means: content, or an image's manifest."""
        if not _HEX.fullmatch(text):
            return []
        digits = text.removeprefix("sha256:")
        found = [entry for entry in content if entry.id.startswith(f"sha256:{digits}")]
        if len(digits) == 64 and not found:
            wanted = f"sha256:{digits}"
            found = [entry for entry in self.entries() if wanted in (entry.manifest, entry.target)]
        return found


def _by_name(entry: Entry, image: Image, name: str, targets: dict[str, str]) -> Entry:
    manifest = image.manifests[name]
    return replace(entry, manifest=manifest, target=targets.get(name, manifest), asked=name)


def _nanoseconds(value: object) -> int:
    """Return a configuration's RFC 3339 time as nanoseconds since 1970; 0 for none, or one that is malformed."""
    try:
        # Python takes at most six digits of the nine that Go writes.
        found = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", str(value)))
    except ValueError:
        return 0
    whole = found if found.tzinfo else found.replace(tzinfo=UTC)
    return max(int(whole.timestamp() * 1_000_000) * 1000, 0)


def _texts(value: Any) -> dict[str, str]:
    """Return what of a JSON object is text by text."""
    if not isinstance(value, dict):
        return {}
    return {key: each for key, each in value.items() if isinstance(each, str)}
