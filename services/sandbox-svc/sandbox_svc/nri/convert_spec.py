"""Parts of an OCI spec as NRI's messages: what a plugin sees of a container that it may change."""

from collections.abc import Iterable
from typing import Any

from bulkhead.proto.containerd import nri_pb2 as nri
from sandbox_svc.oci.model import Json

#: Kind of hook: NRI's field and the runtime specification's member.
HOOKS = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}


def mounts(found: Iterable[Json]) -> list[nri.Mount]:
    """Return a spec's mounts."""
    return [
        nri.Mount(
            destination=mount["destination"],
            type=mount.get("type", ""),
            source=mount.get("source", ""),
            options=mount.get("options") or (),
        )
        for mount in found
    ]


def hooks(found: Json | None) -> nri.Hooks | None:
    """Return a spec's hooks; None for a spec without."""
    if not found:
        return None
    answer = nri.Hooks()
    for field, member in HOOKS.items():
        getattr(answer, field).extend(_hook(hook) for hook in found.get(member) or ())
    return answer


def _hook(found: Json) -> nri.Hook:
    hook = nri.Hook(path=found["path"], args=found.get("args") or (), env=found.get("env") or ())
    if found.get("timeout") is not None:
        hook.timeout.value = found["timeout"]
    return hook


def namespaces(found: Iterable[Json]) -> list[nri.LinuxNamespace]:
    """Return a spec's namespaces."""
    return [nri.LinuxNamespace(type=entry["type"], path=entry.get("path", "")) for entry in found]


def devices(found: Iterable[Json]) -> list[nri.LinuxDevice]:
    """Return a spec's device nodes."""
    answer = []
    for device in found:
        entry = nri.LinuxDevice(
            path=device["path"], type=device["type"], major=device.get("major", 0), minor=device.get("minor", 0)
        )
        for field, member in (("file_mode", "fileMode"), ("uid", "uid"), ("gid", "gid")):
            if device.get(member) is not None:
                _set(getattr(entry, field), device[member])
        answer.append(entry)
    return answer


def rlimits(found: Iterable[Json]) -> list[nri.POSIXRlimit]:
    """Return a process's limits."""
    return [nri.POSIXRlimit(type=limit["type"], hard=limit["hard"], soft=limit["soft"]) for limit in found]


def user(process: Json) -> nri.User:
    """Return who a process is."""
    found = process.get("user") or {}
    return nri.User(uid=found.get("uid", 0), gid=found.get("gid", 0), additional_gids=found.get("additionalGids") or ())


def linux(spec: Json) -> dict[str, Any]:
    """Return the fields of LinuxContainer that a spec says something about, but for its resources."""
    section, process = spec.get("linux") or {}, spec.get("process") or {}
    fields: dict[str, Any] = {
        "namespaces": namespaces(section.get("namespaces") or ()),
        "devices": devices(section.get("devices") or ()),
        "cgroups_path": section.get("cgroupsPath", ""),
        "sysctl": section.get("sysctl") or {},
        "net_devices": {
            name: nri.LinuxNetDevice(name=device.get("name", ""))
            for name, device in (section.get("netDevices") or {}).items()
        },
    }
    if process.get("oomScoreAdj") is not None:
        fields["oom_score_adj"] = nri.OptionalInt(value=process["oomScoreAdj"])
    if priority := process.get("ioPriority"):
        fields["io_priority"] = nri.LinuxIOPriority(
            **{"class": _number(nri.IOPrioClass, priority.get("class", "")), "priority": priority.get("priority", 0)}
        )
    if scheduler := process.get("scheduler"):
        fields["scheduler"] = _scheduler(scheduler)
    if profile := section.get("seccomp"):
        fields["seccomp_policy"] = seccomp(profile)
    if rdt := section.get("intelRdt"):
        fields["rdt"] = _rdt(rdt)
    return fields


def _scheduler(found: Json) -> nri.LinuxScheduler:
    return nri.LinuxScheduler(
        policy=_number(nri.LinuxSchedulerPolicy, found.get("policy", "")),
        nice=found.get("nice", 0),
        priority=found.get("priority", 0),
        flags=[_number(nri.LinuxSchedulerFlag, name) for name in found.get("flags") or ()],
        runtime=found.get("runtime", 0),
        deadline=found.get("deadline", 0),
        period=found.get("period", 0),
    )


def _rdt(found: Json) -> nri.LinuxRdt:
    answer = nri.LinuxRdt(enable_monitoring=nri.OptionalBool(value=bool(found.get("enableMonitoring"))))
    if "closID" in found:
        _set(answer.clos_id, found["closID"])
    if "schemata" in found:
        answer.schemata.value.extend(found["schemata"])
        answer.schemata.SetInParent()
    return answer


def seccomp(found: Json) -> nri.LinuxSeccomp:
    """Return a linux.seccomp section."""
    answer = nri.LinuxSeccomp(
        default_action=found["defaultAction"],
        architectures=found.get("architectures") or (),
        flags=found.get("flags") or (),
        listener_path=found.get("listenerPath", ""),
        listener_metadata=found.get("listenerMetadata", ""),
    )
    if found.get("defaultErrnoRet") is not None:
        _set(answer.default_errno, found["defaultErrnoRet"])
    for rule in found.get("syscalls") or ():
        entry = answer.syscalls.add(names=rule["names"], action=rule["action"])
        if rule.get("errnoRet") is not None:
            _set(entry.errno_ret, rule["errnoRet"])
        for argument in rule.get("args") or ():
            entry.args.add(
                index=argument["index"],
                value=argument["value"],
                value_two=argument.get("valueTwo", 0),
                op=argument["op"],
            )
    return answer


def _set(optional: Any, value: Any) -> None:
    """Set one of the Optional messages, which must be there even where its value is zero."""
    optional.value = value
    optional.SetInParent()


def _number(kind: Any, name: str) -> Any:
    """Return an enum's number by its name, 0 for one that NRI does not know."""
    return dict(kind.items()).get(name, 0)
