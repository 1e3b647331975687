"""What an archive calls its images: OCI layouts, and what `docker save` writes, made into an image manifest.

OCI image-layout.md for the first; for names, the annotations that containerd, Docker and skopeo write. For the second
the manifest.json that Docker has written since 1.10 (moby image/tarexport); where both are there, the layout counts.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bulkhead.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted
from image_svc.decompress import tar_stream
from image_svc.ingest import BLOCK, Content
from image_svc.oci import digests, media, reference
from image_svc.oci.manifest import LAYER_LIMIT, descriptor, load_json
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.registry.repository import Descriptor
from image_svc.transfer.archive import Archive
from image_svc.transfer.compression import unusual
from image_svc.transfer.staging import Staged, Staging

#: The complete name, as containerd and Docker since 25 write it; the tag or name, as the image-spec has it.
FULL_NAME, REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"
#: Images of one archive.
IMAGE_LIMIT = 10_000

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LAYER_TYPES = {
    b"\x1f\x8b": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    b"\x28\xb5\x2f\xfd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
_PLAIN_LAYER = "application/vnd.docker.image.rootfs.diff.tar"


@dataclass(frozen=True)
class Incoming:
    """An image of the archive: what it is, and the names it goes by."""

    target: Descriptor
    names: tuple[Reference, ...]


class Layouts:
    """Reads the images out of an archive."""

    def __init__(self, archive: Archive, content: Content, staging: Staging, patience: Patience) -> None:
        self._archive = archive
        self._content = content
        self._staging = staging
        self._patience = patience
        #: Compressed layers and the diff ids they were found to have: many images may share one.
        self._sound: set[tuple[str, str]] = set()

    def images(self, names: Sequence[str], base_name: str) -> list[Incoming]:
        """Return every image with its names, those given in place of its own; at least one of each.

        FailedPrecondition says what the archive lacks.
        """
        given = tuple(reference.parse_tagged(name) for name in names)
        if self._archive.read("index.json") is not None:
            found = self._oci(base_name, named=bool(given))
        elif self._archive.read("manifest.json") is not None:
            found = self._docker()
        else:
            raise FailedPrecondition(_neither(self._archive))
        if not found:
            raise FailedPrecondition("archive holds no images")
        return _renamed(found, given) if given else _check_named(found)

    # OCI layouts

    def _oci(self, base_name: str, *, named: bool) -> list[Incoming]:
        index = self._document("index.json")
        entries = index.get("manifests")
        if not isinstance(entries, list) or len(entries) > IMAGE_LIMIT:
            raise FailedPrecondition("archive: index.json: manifests is not a list of at most 10000 descriptors")
        by_target: dict[str, tuple[Descriptor, dict[Reference, None]]] = {}
        for number, entry in enumerate(entries):
            where = f"archive: index.json: manifests[{number}]"
            target = descriptor(entry, where)
            if target.media_type and target.media_type not in media.INDEXES | media.MANIFESTS:
                continue
            self._check_target(target, where)
            own = () if named else _own_names(target, base_name, where)
            by_target.setdefault(target.digest, (target, {}))[1].update(dict.fromkeys(own))
        return [Incoming(target, tuple(names)) for target, names in by_target.values()]

    def _check_target(self, target: Descriptor, where: str) -> None:
        blob = self._archive.holds(target.digest)
        if blob is None:
            raise FailedPrecondition(f"{where}: {target.digest} is not in the archive")
        if blob.size != target.size:
            raise DataLoss(f"{where}: {target.digest} has {blob.size} bytes, {target.size} were promised")

    def _document(self, name: str) -> dict[str, Any]:
        return load_json(self._archive.read(name) or b"", f"archive: {name}")

    # docker save

    def _docker(self) -> list[Incoming]:
        try:
            entries = json.loads(self._archive.read("manifest.json") or b"")
        except (ValueError, RecursionError) as error:
            raise FailedPrecondition(f"archive: manifest.json: not JSON: {error}") from error
        if not isinstance(entries, list) or len(entries) > IMAGE_LIMIT:
            raise FailedPrecondition("archive: manifest.json: expected a list of at most 10000 images")
        return [self._saved(entry, f"archive: manifest.json: [{number}]") for number, entry in enumerate(entries)]

    def _saved(self, entry: object, where: str) -> Incoming:
        if not isinstance(entry, dict):
            raise FailedPrecondition(f"{where}: expected an object")
        tags, layers = entry.get("RepoTags") or [], entry.get("Layers") or []
        if not _are_strings(tags) or not _are_strings(layers) or len(layers) > LAYER_LIMIT:
            raise FailedPrecondition(f"{where}: RepoTags or Layers is not a list of strings")
        config = self._configuration(entry.get("Config"), where)
        stated = load_json(self._content.read(config), f"{where}: Config").get("rootfs")
        diff_ids = stated.get("diff_ids") if isinstance(stated, dict) else None
        if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
            raise DataLoss(f"{where}: {len(layers)} layers, and the configuration does not list as many diff ids")
        blobs = [
            self._layer(name, diff_id, f"{where}: Layers[{number}]")
            for number, (name, diff_id) in enumerate(zip(layers, diff_ids, strict=True))
        ]
        size = self._content.path(config).stat().st_size
        manifest = _manifest(Descriptor(config, size, media.DOCKER_CONFIG), blobs)
        target = Descriptor(self._staging.document(manifest), len(manifest), media.DOCKER_MANIFEST)
        return Incoming(target, tuple(dict.fromkeys(reference.parse_tagged(tag) for tag in tags)))

    def _configuration(self, name: object, where: str) -> str:
        """Return the digest of an image's configuration, now a blob; its file is named after it."""
        data = self._archive.read(name) if isinstance(name, str) and name else None
        if data is None:
            raise FailedPrecondition(f"{where}: Config {str(name)[:200]!r} is not in the archive")
        digest = self._staging.document(data)
        stem = str(name).rpartition("/")[2].removesuffix(".json")
        if re.fullmatch(r"[0-9a-f]{64}", stem) and digest != f"sha256:{stem}":
            raise DataLoss(f"{where}: Config {name!r} has content of digest {digest}")
        return digest

    def _layer(self, name: str, diff_id: object, where: str) -> Descriptor:
        blob = self._archive.staged(name)
        if blob is None:
            raise FailedPrecondition(f"{where}: {name[:200]!r} is not in the archive")
        wanted = digests.check(diff_id, f"{where}: diff id")
        if packed := unusual(blob.head):
            raise FailedPrecondition(f"{where}: it is compressed with {packed}; layers are plain, or gzip, or zstd")
        if blob.digest != wanted and (blob.digest, wanted) not in self._sound:
            self._check_diff_id(blob, wanted, where)
            self._sound.add((blob.digest, wanted))
        kind = next((kind for magic, kind in _LAYER_TYPES.items() if blob.head.startswith(magic)), _PLAIN_LAYER)
        return Descriptor(blob.digest, blob.size, kind)

    def _check_diff_id(self, blob: Staged, wanted: str, where: str) -> None:
        """Raise DataLoss unless the layer is compressed and its tar has that digest."""
        hasher, total = digests.hasher(wanted), 0
        with self._content.path(blob.digest).open("rb") as file:
            for piece in tar_stream(iter(lambda: file.read(BLOCK), b""), where):
                self._patience.check()
                total += len(piece)
                if total > self._staging.limit:
                    raise ResourceExhausted(f"{where}: its tar has more than {self._staging.limit} bytes")
                hasher.update(piece)
        found = f"{hasher.name}:{hasher.hexdigest()}"
        if found != wanted:
            raise DataLoss(f"{where}: its tar has digest {found}, the configuration says {wanted}")


def _manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Return a manifest of Docker's family, the same bytes for the same image."""

    def described(each: Descriptor) -> dict[str, object]:
        return {"mediaType": each.media_type, "size": each.size, "digest": each.digest}

    document = {
        "schemaVersion": 2,
        "mediaType": media.DOCKER_MANIFEST,
        "config": described(config),
        "layers": [described(layer) for layer in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _own_names(target: Descriptor, base_name: str, where: str) -> tuple[Reference, ...]:
    """Return what an entry of an OCI layout calls its image; a bare tag needs to be told what it is a tag of.

    DataLoss for a name with the digest of something else, which pods that are pinned to it would run.
    """
    full, short = target.annotations.get(FULL_NAME, ""), target.annotations.get(REF_NAME, "")
    if full and not (base_name and short):
        text = full
    elif not _TAG.fullmatch(short):
        text = short
    else:
        if not base_name:
            only = f"{where}: it is called {short!r} only"
            raise InvalidArgument(f"{only}; say what that is a tag of (base_name), or give the image a name")
        return (reference.parse_tagged(f"{base_name}:{short}"),)
    if not text:
        return ()
    name = reference.parse(text)
    if name.digest and name.digest != target.digest:
        raise DataLoss(f"{where}: it is called {text[:300]!r}, and has digest {target.digest}; give it another name")
    return (name,)


def _renamed(found: list[Incoming], given: tuple[Reference, ...]) -> list[Incoming]:
    if len(found) > 1:
        raise InvalidArgument(f"archive holds {len(found)} images; names can be given to a single one only")
    return [Incoming(found[0].target, given)]


def _check_named(found: list[Incoming]) -> list[Incoming]:
    for image in found:
        if not image.names:
            raise InvalidArgument(f"archive: image {image.target.digest} has no name in it; give it one")
    return found


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and len(each) <= 1024 for each in value)


def _neither(archive: Archive) -> str:
    if "repositories" in archive.documents:
        return "archive was saved by Docker before 1.10, without manifest.json; save the image anew"
    some = ", ".join(sorted([*archive.documents, *archive.blobs])[:5]) or "nothing"
    return f"archive is neither an OCI layout (index.json) nor a docker-archive (manifest.json); it holds {some}"
