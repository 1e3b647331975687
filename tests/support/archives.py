"""Image archives as others write them, sound and otherwise."""

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

from support.images import MEDIA, Image, digest

FULL_NAME, REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"


def tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of files in that order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def untar(data: bytes) -> dict[str, bytes]:
    """Return the files of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [member for member in archive if member.isfile()]
        return {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def blob_name(name: str) -> str:
    """Return where a layout keeps a digest."""
    return f"blobs/{name.replace(':', '/')}"


def image_blobs(image: Image) -> dict[str, bytes]:
    """Return the blobs of an image by their names in a layout."""
    config, layers = image.blobs()
    return {blob_name(digest(blob)): blob for blob in (config, *layers, image.manifest())}


def entry(data: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
    """Return a descriptor of some bytes."""
    made: dict[str, Any] = {"mediaType": media_type, "digest": digest(data), "size": len(data)}
    return {**made, "annotations": annotations} if annotations else made


def index_of(images: list[Image]) -> bytes:
    """Return an index of images of several architectures."""
    kind = MEDIA[images[0].family]
    entries = [
        {**entry(image.manifest(), kind["manifest"]), "platform": {"os": "linux", "architecture": image.architecture}}
        for image in images
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": kind["index"], "manifests": entries}).encode()


def layout(entries: list[dict[str, Any]], blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of an OCI layout."""
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index, **blobs}


def oci(image: Image, name: str = "docker.io/library/app:1") -> dict[str, bytes]:
    """Return the files of a layout that holds one image, named as containerd names it."""
    described = entry(image.manifest(), MEDIA[image.family]["manifest"], **({FULL_NAME: name} if name else {}))
    return layout([described], image_blobs(image))


def saved(image: Image, *tags: str) -> dict[str, bytes]:
    """Return the files that docker save writes for an image: layers as plain tars, directories by layer id."""
    config, _ = image.blobs()
    names = {f"{digest(layer)[7:]}/layer.tar": layer for layer in image.layers}
    stem = f"{digest(config)[7:]}.json"
    manifest = [{"Config": stem, "RepoTags": list(tags) or None, "Layers": list(names)}]
    return {**names, stem: config, "manifest.json": json.dumps(manifest).encode()}
