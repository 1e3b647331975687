"""Where mounts come from on the node: directories that must be made first, image volumes, mounted images."""

import hashlib
import posixpath

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.image import image_config
from sandbox_svc.oci.model import ContainerInput, ImageVolume


def image_volumes(request: ContainerInput) -> tuple[ImageVolume, ...]:
    """Return the volumes that the image defines and no mount of the request covers; none where they are ignored.

    Their host paths derive from the destination, so that asking again gives the same.
    """
    if request.runtime.ignore_image_defined_volumes:
        return ()
    taken = {posixpath.normpath(mount.container_path) for mount in request.config.mounts}
    found = []
    for path in image_config(request.image_config).volumes:
        destination = posixpath.normpath(posixpath.join("/", path))
        if destination in taken:
            continue
        name = hashlib.sha256(destination.encode()).hexdigest()[:32]
        found.append(ImageVolume(destination, posixpath.join(request.volumes_directory, name)))
        taken.add(destination)
    return tuple(found)


def needed_directories(request: ContainerInput) -> tuple[str, ...]:
    """Return the host directories that must be made (mode 0755, with parents) before `container_spec`.

    CRI runtimes have always made a missing host_path as a directory, and the kubelet relies on it for hostPath volumes
    of type "".
    """
    host = request.facts.host
    missing = [
        mount.host_path
        for index, mount in enumerate(request.config.mounts)
        if not mount.HasField("image") and _host_path(mount, f"mounts[{index}]") and not host.exists(mount.host_path)
    ]
    return (*missing, *(volume.host_path for volume in image_volumes(request)))


def source(request: ContainerInput, index: int, mount: cri.Mount, field: str) -> str:
    """Return what to bind for a mount: its host_path without symlinks, or the mounted image."""
    if mount.HasField("image"):
        return _image_source(request, index, mount, field)
    path = _host_path(mount, field)
    try:
        return request.facts.host.real_path(path)
    except OSError as error:
        raise InvalidArgument(f"{field}.host_path: {path}: {error.strerror or error}") from error


def _host_path(mount: cri.Mount, field: str) -> str:
    if not mount.host_path.startswith("/"):
        raise InvalidArgument(f"{field}.host_path: want an absolute path, got {mount.host_path!r}")
    return str(mount.host_path)


def _image_source(request: ContainerInput, index: int, mount: cri.Mount, field: str) -> str:
    """Return where the image of a mount stands; the word at the head of an error is the one the kubelet looks for."""
    if mount.host_path:
        raise InvalidArgument(f"ImageVolumeMountFailed: {field}.host_path: must be empty beside an image")
    if not mount.readonly:
        raise InvalidArgument(f"ImageVolumeMountFailed: {field}.readonly: must be set for an image")
    if not mount.image.image:
        raise InvalidArgument(f"ImageVolumeMountFailed: {field}.image: empty")
    mounted = request.image_mounts.get(index)
    if not mounted:
        raise InvalidArgument(f"ImageVolumeMountFailed: {field}.image: {mount.image.image} is not mounted")
    return mounted
