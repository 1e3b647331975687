"""Specs of the Container Device Interface: what one file says, checked as the CDI project's own library checks it.

Source: SPEC.md of the CNCF Container Device Interface, versions 0.3.0 to 1.1.0, and the rules of its Go library, which
are looser than the document here and there: what the library takes is taken.
"""

import re
from dataclasses import dataclass, field

from sandbox_svc.oci.model import DeviceNode, Edits, Json
from sandbox_svc.yaml_reader import Item, parse

#: A vendor's or a class's name, and a device's (SPEC.md, "Kind" and "Container Device Interface Devices").
_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")

_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_EARLIEST = "0.3.0"

#: By the CDI's name of a hook, which is also the member of an OCI spec's `hooks`.
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
#: Permissions of a device node that give none.
NO_PERMISSIONS = "none"
_TYPES = ("", "b", "c", "u", "p")

_UINT32, _INT64 = (1 << 32) - 1, (1 << 63) - 1


@dataclass(frozen=True)
class Spec:
    """One file: the devices of one kind."""

    #: "vendor/class".
    kind: str
    #: By name without the kind.
    devices: dict[str, Edits] = field(default_factory=dict)
    #: Made once for every container that gets a device of this file.
    edits: Edits = field(default_factory=Edits)


def qualified(name: str) -> bool:
    """Tell whether a name is a device's full one: vendor/class=device."""
    kind, _, device = name.partition("=")
    return _kind_problem(kind) is None and _DEVICE.fullmatch(device) is not None


def read(data: bytes) -> Spec:
    """Return what a spec file says; ValueError, naming the line where it can, for one that is not valid."""
    fields = parse(data).mapping({"cdiVersion", "kind", "annotations", "devices", "containerEdits"})
    kind = fields["kind"].text() if "kind" in fields else ""
    if (problem := _kind_problem(kind)) is not None:
        raise ValueError(f"kind is {kind[:80]!r}, {problem}")
    features = {_EARLIEST}
    if "." in kind.partition("/")[2] or ("annotations" in fields and _annotations(fields["annotations"])):
        features.add("0.6.0")
    edits = _edits(fields["containerEdits"], features) if "containerEdits" in fields else Edits()
    devices: dict[str, Edits] = {}
    for item in fields["devices"].sequence() if "devices" in fields else []:
        name, found = _device(item, features)
        if name in devices:
            raise item.error(f"device {name!r} stands twice")
        devices[name] = found
    if not devices:
        raise ValueError("devices is empty")
    _check_version(fields["cdiVersion"].text() if "cdiVersion" in fields else "", max(features, key=_VERSIONS.index))
    return Spec(kind, devices, edits)


def _kind_problem(kind: str) -> str | None:
    vendor, _, device_class = kind.partition("/")
    if _NAME.fullmatch(vendor) and _NAME.fullmatch(device_class):
        return None
    return "expected vendor/class, both of letters, digits, '_', '-' and '.', from a letter to a letter or digit"


def _check_version(text: str, needed: str) -> None:
    version = text.removeprefix("v")
    if version not in _VERSIONS:
        raise ValueError(f"cdiVersion is {text[:80]!r}, expected one of {_EARLIEST} to {_VERSIONS[-1]}")
    if _VERSIONS.index(version) < _VERSIONS.index(needed):
        raise ValueError(f"cdiVersion is {text!r}, but what the file says takes at least {needed}")


def _annotations(item: Item) -> bool:
    """Tell whether there are annotations; they are for people, but each must be a string."""
    return bool([value.text() for value in item.mapping().values()])


def _device(item: Item, features: set[str]) -> tuple[str, Edits]:
    fields = item.mapping({"name", "annotations", "containerEdits"})
    name = fields["name"].text() if "name" in fields else ""
    if not _DEVICE.fullmatch(name):
        raise item.error(f"name is {name[:80]!r}, expected letters, digits, '_', '-', '.' and ':'")
    if name[0].isdigit():
        features.add("0.5.0")
    if "annotations" in fields and _annotations(fields["annotations"]):
        features.add("0.6.0")
    edits = _edits(fields["containerEdits"], features) if "containerEdits" in fields else Edits()
    if edits == Edits():
        raise item.error(f"device {name!r} has empty containerEdits")
    return name, edits


def _edits(item: Item, features: set[str]) -> Edits:
    fields = item.mapping({"env", "deviceNodes", "netDevices", "hooks", "mounts", "intelRdt", "additionalGids"})
    lists = {name: found.sequence() for name, found in fields.items() if name not in ("env", "intelRdt")}
    edits = Edits(
        env=_environment(fields["env"]) if "env" in fields else (),
        device_nodes=tuple(_device_node(one, features) for one in lists.get("deviceNodes", ())),
        net_devices=_net_devices(lists.get("netDevices", [])),
        hooks=tuple(_hook(one) for one in lists.get("hooks", ())),
        mounts=tuple(_mount(one, features) for one in lists.get("mounts", ())),
        rdt=_rdt(fields["intelRdt"], features) if "intelRdt" in fields else None,
        groups=tuple(one.integer(0, _UINT32) for one in lists.get("additionalGids", ())),
    )
    if edits.groups or edits.rdt is not None:
        features.add("0.7.0")
    if edits.net_devices:
        features.add("1.1.0")
    return edits


def _environment(item: Item) -> tuple[str, ...]:
    found = tuple(item.texts())
    for entry in found:
        if entry.find("=") <= 0:
            raise item.error(f"{entry[:80]!r}, expected NAME=value")
    return found


def _device_node(item: Item, features: set[str]) -> DeviceNode:
    fields = item.mapping(
        {"path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"},
    )
    texts = {name: fields[name].text() for name in ("path", "hostPath", "type", "permissions") if name in fields}
    numbers = {name: fields[name].integer(-_INT64 - 1, _INT64) for name in ("major", "minor") if name in fields}
    small = {name: fields[name].integer(0, _UINT32) for name in ("fileMode", "uid", "gid") if name in fields}
    if not texts.get("path"):
        raise item.error("path is empty")
    if texts.get("type", "") not in _TYPES:
        raise item.error(f"type is {texts['type'][:80]!r}, expected b, c, u or p")
    permissions = texts.get("permissions", "")
    if permissions != NO_PERMISSIONS and permissions.strip("rwm"):
        raise item.error(f"permissions is {permissions[:80]!r}, expected some of r, w and m, or {NO_PERMISSIONS}")
    if texts.get("hostPath"):
        features.add("0.5.0")
    return DeviceNode(
        path=texts["path"],
        host_path=texts.get("hostPath", ""),
        type=texts.get("type", ""),
        major=numbers.get("major", 0),
        minor=numbers.get("minor", 0),
        mode=small.get("fileMode"),
        permissions=permissions,
        uid=small.get("uid"),
        gid=small.get("gid"),
    )


def _net_devices(items: list[Item]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for item in items:
        fields = item.mapping({"hostInterfaceName", "name"})
        host, name = (fields[key].text() if key in fields else "" for key in ("hostInterfaceName", "name"))
        if not host or not name:
            raise item.error("hostInterfaceName and name must both be set")
        if any(host == other or name == taken for other, taken in found):
            raise item.error(f"{host!r} or {name!r} stands twice")
        found.append((host, name))
    return tuple(found)


def _hook(item: Item) -> tuple[str, Json]:
    fields = item.mapping({"hookName", "path", "args", "env", "timeout"})
    name, path = (fields[key].text() if key in fields else "" for key in ("hookName", "path"))
    if name not in HOOKS:
        raise item.error(f"hookName is {name[:80]!r}, expected one of {', '.join(HOOKS)}")
    if not path:
        raise item.error("path is empty")
    hook: Json = {"path": path}
    if "args" in fields and (arguments := fields["args"].texts()):
        hook["args"] = arguments
    if "env" in fields and (environment := _environment(fields["env"])):
        hook["env"] = list(environment)
    if "timeout" in fields:
        hook["timeout"] = fields["timeout"].integer(-_INT64 - 1, _INT64)
    return name, hook


def _mount(item: Item, features: set[str]) -> Json:
    fields = item.mapping({"hostPath", "containerPath", "options", "type"})
    texts = {key: fields[key].text() for key in ("hostPath", "containerPath", "type") if key in fields}
    if not texts.get("hostPath") or not texts.get("containerPath"):
        raise item.error("hostPath and containerPath must both be set")
    mount: Json = {"destination": texts["containerPath"], "source": texts["hostPath"]}
    if texts.get("type"):
        mount["type"] = texts["type"]
        features.add("0.4.0")
    if "options" in fields and (options := fields["options"].texts()):
        mount["options"] = options
    return mount


def _rdt(item: Item, features: set[str]) -> Json:
    fields = item.mapping({"closID", "l3CacheSchema", "memBwSchema", "schemata", "enableMonitoring"})
    found: Json = {}
    for name in ("closID", "l3CacheSchema", "memBwSchema"):
        if name in fields and (text := fields[name].text()):
            found[name] = text
    if "schemata" in fields:
        features.add("1.1.0")
        if schemata := fields["schemata"].texts():
            found["schemata"] = schemata
    if "enableMonitoring" in fields and fields["enableMonitoring"].boolean():
        features.add("1.1.0")
        found["enableMonitoring"] = True
    class_id = found.get("closID", "")
    # A directory of resctrl, or "/" for its root.
    if class_id != "/" and (len(class_id.encode()) >= 4096 or class_id in (".", "..") or set(class_id) & set("/\n")):
        raise item.error(f"closID is {class_id[:80]!r}, expected the name of a directory, or '/'")
    return found
