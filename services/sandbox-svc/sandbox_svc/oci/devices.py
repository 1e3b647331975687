"""Device nodes of a container and the cgroup rules that let it use them."""

import posixpath
import re

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.base import ALL_ACCESS
from sandbox_svc.oci.model import ContainerInput, Device, Json

_PERMISSIONS = re.compile(r"[rwm]{1,3}")


def apply(spec: Json, request: ContainerInput) -> None:
    """Add the devices of the request; one that is a directory on the node stands for every node below it."""
    devices = spec["linux"].setdefault("devices", [])
    rules = spec["linux"]["resources"].setdefault("devices", [])
    owner = _owner(request)
    for index, wanted in enumerate(request.config.devices):
        field = f"devices[{index}]"
        if not _PERMISSIONS.fullmatch(wanted.permissions):
            raise InvalidArgument(f"{field}.permissions: want some of r, w and m, got {wanted.permissions!r}")
        for device in _nodes(request, wanted, field):
            devices.append(_entry(device) | owner)
            rules.append(
                {
                    "allow": True,
                    "type": device.type,
                    "major": device.major,
                    "minor": device.minor,
                    "access": wanted.permissions,
                }
            )
    if not devices:
        del spec["linux"]["devices"]


def apply_all(spec: Json, request: ContainerInput) -> None:
    """Give a privileged container every device node of the host."""
    spec["linux"].setdefault("devices", []).extend(_entry(device) for device in request.facts.host.devices())


def allow_all(spec: Json) -> None:
    """Let the container use and make any device."""
    spec["linux"]["resources"]["devices"] = [{"allow": True, "access": ALL_ACCESS}]


def _nodes(request: ContainerInput, wanted: cri.Device, field: str) -> list[Device]:
    host = request.facts.host
    try:
        source = host.real_path(wanted.host_path)
        found = host.device(source)
    except OSError as error:
        raise InvalidArgument(f"{field}.host_path: {wanted.host_path}: {error.strerror or error}") from error
    return [Device(_destination(device.path, source, wanted.container_path), *_numbers(device)) for device in found]


def _numbers(device: Device) -> tuple[str, int, int, int, int, int]:
    return device.type, device.major, device.minor, device.mode, device.uid, device.gid


def _destination(path: str, source: str, container_path: str) -> str:
    """Return where the node stands in the container: below container_path as it is below source."""
    if not container_path:
        return path
    below = posixpath.relpath(path, source)
    return container_path if below == "." else posixpath.join(container_path, below)


def _owner(request: ContainerInput) -> Json:
    """Return the owner that device_ownership_from_security_context gives to devices; empty keeps the host's."""
    if not request.runtime.device_ownership_from_security_context:
        return {}
    context = request.config.linux.security_context
    owner = {"uid": context.run_as_user.value, "gid": context.run_as_group.value}
    return {name: value for name, value in owner.items() if value}


def _entry(device: Device) -> Json:
    return {
        "path": device.path,
        "type": device.type,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }
