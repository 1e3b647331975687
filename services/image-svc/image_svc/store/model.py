"""Rows of the store as values."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """A layer of a manifest: the blob and the chain it completes."""

    digest: str
    media_type: str
    size: int
    diff_id: str
    chain_id: str
    #: Annotations that start with "org.opencontainers.image.enc.".
    annotations: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class NewLayer:
    """A layer that was unpacked, settled and synced."""

    chain_id: str
    parent: str
    diff_id: str
    #: The snapshot's name, a number.
    name: int
    #: Disk space of its tree.
    bytes: int
    inodes: int


@dataclass(frozen=True)
class StoredLayer:
    """An unpacked layer as the store has it."""

    chain_id: str
    parent: str
    name: int


@dataclass(frozen=True)
class NewImage:
    """A manifest that was pulled completely, and the name it was pulled by."""

    #: The digest of the configuration.
    id: str
    manifest: str
    media_type: str
    #: What the name resolved to: an index, or the manifest itself.
    target: str
    #: Bytes of configuration and layers as the registry stores them.
    size: int
    encrypted: bool
    user: str
    layers: tuple[Layer, ...]
    #: Names to add or to move: complete references, by tag or by digest.
    names: tuple[str, ...]
    #: Whether they are taken back unless the import that gives them comes to its end.
    provisional: bool = False


@dataclass(frozen=True)
class Image:
    """An image as lists and containers see it."""

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    #: Manifest by name, for each of the names above.
    manifests: dict[str, str] = field(hash=False)
    size: int
    user: str
    chain_id: str
    pinned: bool
    #: The manifests that came encrypted.
    encrypted: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name."""
        return self.repo_tags + self.repo_digests


@dataclass(frozen=True)
class Snapshot:
    """A container's writable layer."""

    key: str
    name: int
    snapshotter: str
    image_id: str
    manifest: str
    chain_id: str
