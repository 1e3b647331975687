"""From what a name resolved to, down to one platform's manifest and configuration, kept as blobs on the way."""

import logging
from dataclasses import dataclass
from typing import Protocol

from bulkhead.errors import DataLoss, FailedPrecondition
from image_svc.ingest import Content
from image_svc.leases import Lease
from image_svc.oci import digests, media, platforms
from image_svc.oci.manifest import CONFIG_LIMIT, Manifest, chain_ids, choose, kind_of, load_json, parse, parse_config
from image_svc.oci.platforms import Platform
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.registry.repository import Descriptor
from image_svc.store import Layer

logger = logging.getLogger(__name__)

_ENCRYPTION = "org.opencontainers.image.enc."


@dataclass(frozen=True)
class Found:
    """A name resolved down to one platform's image."""

    #: What the name stands for: an index, or the manifest itself; size and media type are those of its bytes.
    target: Descriptor
    descriptor: Descriptor
    manifest: Manifest
    layers: tuple[Layer, ...]
    user: str


class Documents(Protocol):
    """Where manifests and configurations come from: a repository behind its hosts."""

    @property
    def reference(self) -> Reference:
        """The image that is wanted."""

    def manifest(self, wanted: Descriptor, patience: Patience) -> tuple[bytes, str]:
        """Return a manifest or index, checked, and its media type."""

    def small_blob(self, wanted: Descriptor, limit: int, patience: Patience) -> bytes:
        """Return a blob of at most `limit` bytes, checked."""


class Finder:
    """Fetches the documents of one pull; what is here and sound is not fetched again."""

    def __init__(self, repository: Documents, content: Content, lease: Lease, patience: Patience) -> None:
        self._repository = repository
        self._content = content
        #: Documents that this pull brought, by digest, and their sizes: not durable and not recorded yet.
        self.fetched: dict[str, int] = {}
        self._lease = lease
        self._patience = patience

    def find(self, target: Descriptor, host: Platform) -> Found:
        """Return the image behind an index or manifest that fits the host."""
        name = self._repository.reference.name
        where = f"{name}@{target.digest}"
        tree, target = self._document(target)
        chosen = target
        if chosen.media_type in media.INDEXES:
            wanted = choose(tree, host, where)
            where = f"{name}@{wanted.digest}"
            tree, chosen = self._document(wanted)
            if chosen.media_type in media.INDEXES:
                raise FailedPrecondition(f"{where}: an index within an index is not supported")
        manifest = parse(tree, where)
        data = self._configuration(manifest.config)
        config = parse_config(data, manifest, host, f"{where}: config {manifest.config.digest}")
        if platforms.choose([config.platform], host) is None:
            raise FailedPrecondition(f"{where}: image is for {config.platform}, this machine is {host}")
        return Found(target, chosen, manifest, _layers(manifest, config.diff_ids), config.user)

    def _document(self, wanted: Descriptor) -> tuple[dict[str, object], Descriptor]:
        """Return a manifest or index and its descriptor, with size and media type as they proved to be."""
        data, served = self._kept(wanted.digest), wanted.media_type
        if data is None:
            data, served = self._repository.manifest(wanted, self._patience)
            self._keep(wanted.digest, data)
        where = f"{self._repository.reference.name}@{wanted.digest}"
        tree = load_json(data, where)
        return tree, Descriptor(wanted.digest, len(data), kind_of(tree, served, where))

    def _configuration(self, wanted: Descriptor) -> bytes:
        data = self._kept(wanted.digest)
        if data is None:
            data = self._repository.small_blob(wanted, CONFIG_LIMIT, self._patience)
            self._keep(wanted.digest, data)
        return data

    def _kept(self, digest: str) -> bytes | None:
        """Return a small blob that is here and sound; it stays until the pull ends."""
        self._lease.claim(digest)
        staged = not self._content.has(digest)
        path = self._content.partial(digest) if staged else self._content.path(digest)
        try:
            data = path.read_bytes()
            digests.verify(data, digest, "content store")
        except FileNotFoundError:
            return None
        except DataLoss as error:
            if not staged:
                logger.warning("fetching %s again: %s", digest, error)
                self._content.quarantine(digest)
            return None
        if staged:
            self.fetched[digest] = len(data)
        return data

    def _keep(self, digest: str, data: bytes) -> None:
        self._content.stage(digest, data)
        self.fetched[digest] = len(data)


def _layers(manifest: Manifest, diff_ids: tuple[str, ...]) -> tuple[Layer, ...]:
    return tuple(
        Layer(each.digest, each.media_type, each.size, diff_id, chain_id, _encryption(each.annotations))
        for each, diff_id, chain_id in zip(manifest.layers, diff_ids, chain_ids(diff_ids), strict=True)
    )


def _encryption(annotations: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in annotations.items() if key.startswith(_ENCRYPTION)}
