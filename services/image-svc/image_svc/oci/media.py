"""Media types of the two manifest families, and which layers can be run."""

from collections.abc import Iterable

from bulkhead.errors import FailedPrecondition

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
# Docker before 1.11 pushed configurations as plain bytes.
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream"})
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"))

_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_ENCRYPTED = "+encrypted"
# How they are compressed is seen from their first bytes.
_LAYERS = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
_FOREIGN = ("application/vnd.docker.image.rootfs.foreign.", "application/vnd.oci.image.layer.nondistributable.")
# What programs of the configuration turn into layers: of the process, as its configuration is.
_processed: set[str] = set()


def is_encrypted(media_type: str) -> bool:
    """Whether a layer's bytes are encrypted."""
    return media_type.endswith(_ENCRYPTED)


def plain_type(media_type: str) -> str:
    """Return the media type of an encrypted layer once it is decrypted; of a plain one its own."""
    return media_type.removesuffix(_ENCRYPTED)


def processed(media_types: Iterable[str]) -> None:
    """Let layers of these types pass `check_layer` from now on: a stream processor accepts them."""
    _processed.update(media_types)


def is_layer(media_type: str) -> bool:
    """Whether a layer of this type, which is plain, can be unpacked."""
    foreign = media_type.startswith(_FOREIGN) and ".tar" in media_type
    return media_type in _LAYERS or foreign


def check_layer(media_type: str, where: str, *, elsewhere: bool = False) -> None:
    """Raise FailedPrecondition, which names the type, for a layer that cannot be run.

    Foreign layers lie at other servers (`elsewhere`: the descriptor has urls), and are not fetched. One that is
    encrypted and names no other place is in the registry itself.
    """
    base = plain_type(media_type)
    if base.startswith(_FOREIGN) and (elsewhere or not is_encrypted(media_type)) and media_type not in _processed:
        text = f"{where}: foreign layers ({media_type[:200]!r}) are not fetched: they lie at other servers"
        raise FailedPrecondition(text)
    if not is_layer(base) and media_type not in _processed:
        raise FailedPrecondition(f"{where}: unknown layer media type {media_type[:200]!r}")


def check_not_schema_1(media_type: str, version: object, where: str) -> None:
    """Refuse Docker's first manifest format by its name."""
    if media_type.startswith(_SCHEMA_1) or version == 1:
        raise FailedPrecondition(f"{where}: Docker image manifest schema 1 is not supported; push the image anew")
