"""Images as one tar: an OCI layout that `docker load` reads as well, or what `docker save` used to write."""

import json
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from bulkhead.errors import FailedPrecondition
from image_svc.ingest import Content
from image_svc.oci import media, reference
from image_svc.oci.platforms import Platform
from image_svc.oci.reference import Reference
from image_svc.registry.repository import Descriptor
from image_svc.transfer.contents import Contents, Tree, Variant
from image_svc.transfer.layout import FULL_NAME, REF_NAME

#: Bytes handed on at once: a gRPC message costs as much as the copying of some hundred kilobytes.
PIECE = 1 << 20
_NAMED = 20


@dataclass(frozen=True)
class Outgoing:
    """One image to export."""

    names: tuple[Reference, ...]
    tree: Tree
    variants: tuple[Variant, ...]
    #: What Docker is to run: it knows one platform an archive.
    main: Variant


@dataclass
class _Plan:
    """What the tar will hold: documents of ours, then blobs, by their names."""

    documents: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, Descriptor] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of the tar."""
        sizes = [*map(len, self.documents.values()), *(blob.size for blob in self.blobs.values())]
        directories = len(_directories([*self.documents, *self.blobs]))
        return sum(512 + size + -size % 512 for size in sizes) + 512 * directories + 1024


class Exporter:
    """Writes images of the content store as a tar: the same bytes for the same images."""

    def __init__(self, content: Content, contents: Contents, images: Iterable[Outgoing], *, docker: bool) -> None:
        self._content = content
        self._contents = contents
        self._images = list(images)
        self._plan = self._docker_archive() if docker else self._oci_layout()

    @property
    def digests(self) -> set[str]:
        """Every blob that the archive is made of."""
        return {each.digest for each in self._plan.blobs.values()}

    @property
    def total(self) -> int:
        """Bytes of the whole tar."""
        return self._plan.total

    def pieces(self) -> Iterator[bytes]:
        """Yield the tar."""
        names = [*self._plan.documents, *self._plan.blobs]
        for directory in _directories(names):
            yield _header(directory, 0, directory=True)
        for name, data in self._plan.documents.items():
            yield _header(name, len(data)) + data + bytes(-len(data) % 512)
        for name, blob in self._plan.blobs.items():
            yield _header(name, blob.size)
            yield from self._blob(blob)
        yield bytes(1024)

    def _blob(self, blob: Descriptor) -> Iterator[bytes]:
        left = blob.size
        with self._content.path(blob.digest).open("rb") as file:
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise FailedPrecondition(f"{blob.digest} is shorter on disk than the {blob.size} bytes promised")
                left -= len(piece)
                yield piece
        if padding := -blob.size % 512:
            yield bytes(padding)

    def check(self) -> None:
        """Raise FailedPrecondition, which names them, for blobs that are not here."""
        for image in self._images:
            name = image.names[0] if image.names else image.tree.target.digest
            for variant in image.variants:
                missing = self._contents.missing(variant)
                if not variant.known or missing:
                    raise FailedPrecondition(missing_text(str(name), missing))

    # OCI layout

    def _oci_layout(self) -> _Plan:
        plan = _Plan({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'})
        entries = [entry for image in self._images for entry in _index_entries(image)]
        index = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": entries}
        plan.documents["index.json"] = _json(index)
        blobs: dict[str, Descriptor] = {}
        for image in self._images:
            for each in (*image.tree.indexes, *(blob for variant in image.variants for blob in variant.blobs)):
                blobs[f"blobs/{each.digest.replace(':', '/')}"] = each
        plan.blobs = dict(sorted(blobs.items()))
        saved = [_saved(image, lambda each: f"blobs/{each.digest.replace(':', '/')}") for image in self._images]
        plan.documents["manifest.json"] = _json([each for each in saved if each])
        return plan

    # docker save

    def _docker_archive(self) -> _Plan:
        plan = _Plan()
        entries = []
        for image in self._images:
            config = image.main.config
            if config is None:
                raise FailedPrecondition(f"{image.tree.target.digest}: its manifest is not here")
            names = {config.digest: f"{_hex(config)}.json"}
            plan.blobs[names[config.digest]] = config
            for layer in image.main.layers:
                names[layer.digest] = f"{_hex(layer)}.tar"
                plan.blobs[names[layer.digest]] = layer
            entries.append(_saved(image, lambda each, names=names: names[each.digest]))  # type: ignore[misc]
        plan.documents["manifest.json"] = _json(entries)
        return plan


def missing_text(name: str, missing: Sequence[str]) -> str:
    """Return why an image cannot leave: the blobs that are not here, by name."""
    shown = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
    return (
        f"{name}: {len(missing)} of its blobs are not here: {shown}. They were discarded after unpacking "
        "(discard_unpacked_layers) or never fetched; a pull without unpacking, or of all platforms, fetches them"
    )


def _index_entries(image: Outgoing) -> Iterator[dict[str, object]]:
    """Yield an entry of index.json for each name, as `ctr images export` writes them."""
    target = image.tree.target
    base: dict[str, object] = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
    if not image.tree.indexes and image.main.platform is not None:
        base["platform"] = _platform(image.main.platform)
    if not image.names:
        yield base
    for name in image.names:
        notes = {FULL_NAME: str(name)}
        if name.tag:
            notes[REF_NAME] = name.tag
        yield {**base, "annotations": notes}


def _saved(image: Outgoing, path: Callable[[Descriptor], str]) -> dict[str, object]:
    """Return the entry of manifest.json that docker load reads; empty for what Docker could not load."""
    main = image.main
    if main.config is None or main.config.media_type not in media.CONFIGS:
        return {}
    return {
        "Config": path(main.config),
        "RepoTags": [familiar(name) for name in image.names if name.tag],
        "Layers": [path(layer) for layer in main.layers],
    }


def familiar(name: Reference) -> str:
    """Return a name as Docker shows it: docker.io and library/ go without saying."""
    if name.domain != reference.DEFAULT_DOMAIN:
        return str(name)
    return str(name).removeprefix("docker.io/").removeprefix("library/")


def _platform(platform: Platform) -> dict[str, str]:
    made = {"architecture": platform.architecture, "os": platform.os}
    return {**made, "variant": platform.variant} if platform.variant else made


def _hex(each: Descriptor) -> str:
    return each.digest.partition(":")[2]


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _directories(names: Iterable[str]) -> list[str]:
    """Return the directories that names lie in, each before what is in it."""
    found = {parent for name in names for parent in _parents(name)}
    return sorted(found)


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


def _header(name: str, size: int, *, directory: bool = False) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    info.mode = 0o755 if directory else 0o644
    return info.tobuf(tarfile.GNU_FORMAT)
