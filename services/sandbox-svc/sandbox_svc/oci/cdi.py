"""CDI devices: which ones a container asks for, and the changes to its OCI spec that give it them.

Nothing of an image or of a checkpoint can ask for a device: only the CRI's own field and the annotations that the
caller put into the container's configuration are read (CVE-2026-53492).
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci import cdi_spec
from sandbox_svc.oci.model import DeviceNode, Edits, Hardware, Json

ANNOTATION_PREFIX = "cdi.k8s.io/"


def requested(config: cri.ContainerConfig) -> list[str]:
    """Return the devices that a container asks for, each once: those of CDI_devices, then those of annotations.

    InvalidArgument for a name that is not a full one.
    """
    names = [(f"CDI_devices[{index}].name", device.name) for index, device in enumerate(config.CDI_devices)]
    names += _annotated(config.annotations)
    for where, name in names:
        if not cdi_spec.qualified(name):
            raise InvalidArgument(f"{where} is {name[:200]!r}, expected vendor/class=device")
    return list(dict.fromkeys(name for _, name in names))


def inject(spec: Json, names: Sequence[str], hardware: Hardware) -> None:
    """Give a container devices by their full names; NotFound for one that no spec of the node defines."""
    if names:
        apply(spec, hardware.edits(names), hardware)


def apply(spec: Json, edits: Edits, hardware: Hardware) -> None:
    """Make edits in an OCI spec, in place."""
    process, linux = spec.setdefault("process", {}), spec.setdefault("linux", {})
    _environment(process, edits.env)
    for node in edits.device_nodes:
        _device(linux, process.get("user", {}), _complete(node, hardware))
    if edits.net_devices:
        linux.setdefault("netDevices", {}).update({host: {"name": name} for host, name in edits.net_devices})
    if edits.mounts:
        _mounts(spec, edits.mounts)
    for name, hook in edits.hooks:
        spec.setdefault("hooks", {}).setdefault(name, []).append(dict(hook))
    if edits.rdt is not None:
        linux["intelRdt"] = dict(edits.rdt)
    _groups(process, edits.groups)


def _annotated(annotations: Mapping[str, str]) -> list[tuple[str, str]]:
    found = sorted((key, value) for key, value in annotations.items() if key.startswith(ANNOTATION_PREFIX))
    return [(f"annotations[{key[:100]}]", name) for key, value in found for name in value.split(",")]


def _environment(process: Json, entries: Iterable[str]) -> None:
    """Set variables in the place that they have, new ones at the end."""
    if not entries:
        return
    environment = process.setdefault("env", [])
    places = {entry.partition("=")[0]: index for index, entry in enumerate(environment)}
    for entry in entries:
        name = entry.partition("=")[0]
        if name in places:
            environment[places[name]] = entry
        else:
            places[name] = len(environment)
            environment.append(entry)


def _complete(node: DeviceNode, hardware: Hardware) -> DeviceNode:
    """Return the node with what it does not say taken from the host's; one with type and major need not be there."""
    said = bool(node.type) and (node.major != 0 or node.type == "p")
    path = node.host_path or node.path
    try:
        found = hardware.node(path)
    except OSError as error:
        if said:
            return node
        raise FailedPrecondition(f"CDI device node {path}: {error.strerror or error}") from error
    mode = found.mode if node.mode is None else node.mode
    if said:
        return replace(node, mode=mode)
    kind = node.type or found.type
    if kind != found.type:
        raise FailedPrecondition(f"CDI device node {path} is of type {found.type!r}, its spec says {kind!r}")
    if kind == "p" or node.major:
        return replace(node, type=kind, mode=mode)
    return replace(node, type=kind, mode=mode, major=found.major, minor=found.minor)


def _device(linux: Json, user: Json, node: DeviceNode) -> None:
    """Add a node in place of what stands at its path; a node without owner belongs to the container's user."""
    entry: Json = {"path": node.path, "type": node.type, "major": node.major, "minor": node.minor}
    uid = user.get("uid") or None if node.uid is None else node.uid
    gid = user.get("gid") or None if node.gid is None else node.gid
    entry |= {name: value for name, value in (("fileMode", node.mode), ("uid", uid), ("gid", gid)) if value is not None}
    linux["devices"] = [other for other in linux.get("devices", []) if other["path"] != node.path] + [entry]
    if node.type not in ("b", "c"):
        return
    rule: Json = {"allow": True, "type": node.type, "major": node.major, "minor": node.minor}
    if node.permissions != cdi_spec.NO_PERMISSIONS:
        rule["access"] = node.permissions or "rwm"
    linux.setdefault("resources", {}).setdefault("devices", []).append(rule)


def _mounts(spec: Json, mounts: Iterable[Json]) -> None:
    """Add mounts in place of those at the same destinations, and sort all, shallow ones first."""
    found = spec.setdefault("mounts", [])
    mapped = any(space.get("type") == "user" for space in spec["linux"].get("namespaces", ()))
    for mount in mounts:
        replaced = next((one for one in found if one["destination"] == mount["destination"]), None)
        if replaced is not None:
            found.remove(replaced)
        found.append(_id_mapped(mount) if mapped else dict(mount))
    found.sort(key=lambda one: _clean(one["destination"]).count("/"))


def _id_mapped(mount: Json) -> Json:
    """Return a mount for a container with a user namespace: a bind mount's owners are mapped into it."""
    options = mount.get("options", [])
    if {"idmap", "ridmap"} & set(options):
        return dict(mount)
    option = "idmap" if mount.get("type") == "bind" else ""
    for one in options:
        option = {"bind": "idmap", "rbind": "ridmap"}.get(one, option)
    return {**mount, "options": [*options, option]} if option else dict(mount)


def _groups(process: Json, groups: Iterable[int]) -> None:
    """Add supplementary groups; the group 0 gives nothing and is left out, as the CDI library does."""
    for group in groups:
        known = process.setdefault("user", {}).get("additionalGids", [])
        if group and group not in known:
            process["user"]["additionalGids"] = [*known, group]


def _clean(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/") if path.startswith("/") else posixpath.normpath(path)
