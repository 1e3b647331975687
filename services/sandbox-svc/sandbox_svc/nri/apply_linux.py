"""What an adjustment changes in a spec's linux section, but for the resources."""

import re
from collections.abc import Iterable, Mapping

from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.containerd import nri_pb2 as nri
from sandbox_svc import cgroup
from sandbox_svc.nri.apply_resources import add_device_rule
from sandbox_svc.nri.keys import entries, name_of, one_of, removal
from sandbox_svc.oci import namespaces as oci_namespaces
from sandbox_svc.oci.model import Json

_NAMESPACES = ("network", "pid", "mount", "ipc", "uts", "user", "cgroup", "time")
_DEVICES = ("b", "c", "u", "p")
#: The modes of set_mempolicy(2) as the runtime specification has them; node lists are cpuset(7)'s "0-3,7".
_NODES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def devices(spec: Json, wanted: Iterable[nri.LinuxDevice]) -> None:
    """Add device nodes, each with the cgroup rule that lets it be used; one at a place that is taken replaces it."""
    for device in wanted:
        place, gone = removal(device.path)
        found = spec["linux"].setdefault("devices", [])
        found[:] = [entry for entry in found if entry["path"] != place]
        if gone:
            continue
        if not place.startswith("/"):
            raise FailedPrecondition(f"NRI adjustment.linux.devices: path is {place!r}, expected an absolute path")
        one_of(device.type, _DEVICES, f"linux.devices: type of {place}")
        found.append(_device(device))
        access = "rwm" if device.type == "b" else "rw"
        add_device_rule(spec["linux"].setdefault("resources", {}), device.type, device.major, device.minor, access)


def _device(device: nri.LinuxDevice) -> Json:
    entry: Json = {"path": device.path, "type": device.type, "major": device.major, "minor": device.minor}
    for field, member in (("file_mode", "fileMode"), ("uid", "uid"), ("gid", "gid")):
        if device.HasField(field):
            entry[member] = getattr(device, field).value
    return entry


def cgroups_path(spec: Json, wanted: str) -> None:
    """Put the container into another cgroup; the path has the form that the runtime's cgroup driver wants."""
    if not wanted:
        return
    try:
        inside = cgroup.relative(wanted)
    except InvalidArgument as error:
        raise FailedPrecondition(f"NRI adjustment.linux.cgroups_path: {error}") from error
    if not inside:
        raise FailedPrecondition(f"NRI adjustment.linux.cgroups_path: {wanted!r} is the root of the hierarchy")
    spec["linux"]["cgroupsPath"] = wanted


def seccomp(spec: Json, wanted: nri.LinuxContainerAdjustment) -> None:
    """Replace the seccomp profile."""
    if not wanted.HasField("seccomp_policy"):
        return
    policy = wanted.seccomp_policy
    profile: Json = {"defaultAction": policy.default_action}
    if policy.HasField("default_errno"):
        profile["defaultErrnoRet"] = policy.default_errno.value
    for member, values in (("architectures", policy.architectures), ("flags", policy.flags)):
        if values:
            profile[member] = list(values)
    for member, value in (("listenerPath", policy.listener_path), ("listenerMetadata", policy.listener_metadata)):
        if value:
            profile[member] = value
    if policy.syscalls:
        profile["syscalls"] = [_syscall(rule) for rule in policy.syscalls]
    spec["linux"]["seccomp"] = profile


def _syscall(rule: nri.LinuxSyscall) -> Json:
    entry: Json = {"names": list(rule.names), "action": rule.action}
    if rule.HasField("errno_ret"):
        entry["errnoRet"] = rule.errno_ret.value
    if rule.args:
        entry["args"] = [
            {"index": found.index, "value": found.value, "valueTwo": found.value_two, "op": found.op}
            for found in rule.args
        ]
    return entry


def namespaces(spec: Json, wanted: Iterable[nri.LinuxNamespace]) -> None:
    """Join, make or leave namespaces."""
    for namespace in wanted:
        kind, gone = removal(namespace.type)
        one_of(kind, _NAMESPACES, "linux.namespaces: type")
        if gone:
            oci_namespaces.drop(spec, kind)
        else:
            oci_namespaces.put(spec, kind, namespace.path)


def sysctls(spec: Json, wanted: Mapping[str, str]) -> None:
    """Set and remove kernel parameters of the container's namespaces."""
    if wanted:
        entries(spec["linux"].setdefault("sysctl", {}), wanted, "linux.sysctl")


def net_devices(spec: Json, wanted: Mapping[str, nri.LinuxNetDevice], *, known: bool = True) -> None:
    """Move network devices of the node into the container; a name renames them there.

    A runtime that does not know of them (`known` false) would leave them out, and those of CDI devices, too.
    """
    found = spec["linux"].setdefault("netDevices", {})
    entries(found, {key: {"name": dev.name} if dev.name else {} for key, dev in wanted.items()}, "linux.net_devices")
    if not found:
        del spec["linux"]["netDevices"]
    elif not known:
        raise FailedPrecondition(
            f"NRI adjustment: network devices {', '.join(found)}, which the OCI runtime does not know of "
            "(`features` has no linux.netDevices)"
        )


def memory_policy(spec: Json, wanted: nri.LinuxContainerAdjustment, *, known: bool = True) -> None:
    """Set the default memory policy of the container's processes; a runtime that is not `known` to would not."""
    if not wanted.HasField("memory_policy"):
        return
    if not known:
        raise FailedPrecondition(
            "NRI adjustment.linux.memory_policy, which the OCI runtime does not know of "
            "(`features` has no linux.memoryPolicy)"
        )
    policy = wanted.memory_policy
    if policy.nodes and not _NODES.fullmatch(policy.nodes):
        raise FailedPrecondition(
            f"NRI adjustment.linux.memory_policy.nodes: {policy.nodes!r}, expected a list of nodes such as 0-1,3"
        )
    section: Json = {"mode": name_of(nri.MpolMode, policy.mode, "linux.memory_policy.mode"), "nodes": policy.nodes}
    if policy.flags:
        section["flags"] = [name_of(nri.MpolFlag, flag, "linux.memory_policy.flags") for flag in policy.flags]
    spec["linux"]["memoryPolicy"] = section


def rdt_class(spec: Json, wanted: nri.LinuxResources) -> None:
    """Put the container into an RDT class, which is its class of service; an empty name takes it out."""
    if not wanted.HasField("rdt_class"):
        return
    if wanted.rdt_class.value:
        spec["linux"]["intelRdt"] = {"closID": wanted.rdt_class.value}
    else:
        spec["linux"].pop("intelRdt", None)


def rdt(spec: Json, wanted: nri.LinuxContainerAdjustment) -> None:
    """Set single parameters of RDT, after taking away what is there where that is asked for."""
    if not wanted.HasField("rdt"):
        return
    found = wanted.rdt
    if found.remove:
        spec["linux"].pop("intelRdt", None)
    section: Json = {}
    if found.HasField("clos_id"):
        section["closID"] = found.clos_id.value
    if found.HasField("schemata"):
        section["schemata"] = list(found.schemata.value)
    if found.HasField("enable_monitoring"):
        section["enableMonitoring"] = found.enable_monitoring.value
    if section:
        spec["linux"]["intelRdt"] = {**spec["linux"].get("intelRdt", {}), **section}
