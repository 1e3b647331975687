"""The seccomp section of a spec: the default profile, a profile file of the node, or none.

The default profile is containerd's (contrib/seccomp), kept as a table in default_seccomp.toml beside this module.
"""

import json
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from bulkhead.config.model import Runtime
from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci import profiles
from sandbox_svc.oci.model import HostFacts, Json

_FIELD = "linux.security_context.seccomp"

#: Architectures whose system calls a process can make on a machine, the machine's own first on x86.
ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "s390x": ("SCMP_ARCH_S390", "SCMP_ARCH_S390X"),
}

#: Member -> type of what runtime-spec knows in linux.seccomp; anything else in a profile file is another tool's.
_MEMBERS: dict[str, type] = {
    "defaultAction": str,
    "defaultErrnoRet": int,
    "architectures": list,
    "flags": list,
    "listenerPath": str,
    "listenerMetadata": str,
}
_SYSCALL_MEMBERS: dict[str, type] = {"names": list, "action": str, "errnoRet": int, "args": list}
_ARGUMENT_MEMBERS: dict[str, type] = {"index": int, "value": int, "valueTwo": int, "op": str}


def apply(
    spec: Json,
    context: "cri.LinuxContainerSecurityContext | cri.LinuxSandboxSecurityContext",
    runtime: Runtime,
    facts: HostFacts,
) -> None:
    """Set or leave out linux.seccomp; capabilities must have been set, for the default profile depends on them.

    A privileged container has none. Asking for a profile where the kernel has no seccomp fails, rather than running
    without.
    """
    profile = _wanted(context, runtime)
    if context.privileged or profile is None:
        return
    if not facts.seccomp:
        if profile.profile_type != profiles.UNCONFINED:
            raise FailedPrecondition(f"{_FIELD}: this kernel has no seccomp")
        return
    profiles.check(profile, _FIELD)
    if profile.profile_type == profiles.RUNTIME_DEFAULT:
        bounding = spec["process"]["capabilities"].get("bounding") or ()
        spec["linux"]["seccomp"] = default_profile(bounding, facts.machine, facts.kernel)
    elif profile.profile_type == profiles.LOCALHOST:
        path = profiles.localhost_name(profile)
        spec["linux"]["seccomp"] = parse_profile(_read(path, facts), path)
    elif profile.profile_type == profiles.UNCONFINED:
        spec["linux"].pop("seccomp", None)


def default_profile(capabilities: Iterable[str], machine: str, kernel: tuple[int, int]) -> Json:
    """Return the default profile for a bounding set: what it allows grows with the capabilities, the rest gets EPERM.

    clone3 without CAP_SYS_ADMIN gets ENOSYS, so that libc falls back to clone, whose flags can be judged.
    """
    table = _table()
    rules = [_allow(table["always"].split())]
    rules += [_allow([rule["syscall"]], rule) for rule in table["when"]]
    if kernel >= (4, 8):
        # Before 4.8, ptrace could be used to get around a filter.
        rules.append(_allow(table["ptrace"].split()))
    if machine in table["machine"]:
        rules.append(_allow(table["machine"][machine].split()))
    capabilities = list(capabilities)
    rules += [_allow(table["capability"][name].split()) for name in capabilities if name in table["capability"]]
    if "CAP_SYS_ADMIN" not in capabilities:
        clone = dict(table["without_sys_admin"]["clone"], index=1 if machine == "s390x" else 0)
        rules.append(_allow(["clone"], clone))
        rules.append(
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": table["without_sys_admin"]["clone3"]}
        )
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": list(ARCHITECTURES.get(machine, ())),
        "syscalls": rules,
    }


def parse_profile(text: bytes, path: str) -> Json:
    """Return a profile file as linux.seccomp: members that runtime-spec does not know are dropped.

    Raises InvalidArgument with the file's path and the member that is wrong.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{_FIELD}: profile {path}: {error}") from error
    profile = _members(document, _MEMBERS, f"profile {path}")
    if "defaultAction" not in profile:
        raise InvalidArgument(f"{_FIELD}: profile {path}: no defaultAction")
    profile["syscalls"] = [
        _rule(rule, f"profile {path}: syscalls[{index}]") for index, rule in enumerate(document.get("syscalls") or ())
    ]
    return profile


def _wanted(
    context: "cri.LinuxContainerSecurityContext | cri.LinuxSandboxSecurityContext", runtime: Runtime
) -> cri.SecurityProfile | None:
    """Return the profile asked for, by the new field, the old one, or unset_seccomp_profile; None for none of them."""
    if context.HasField("seccomp"):
        return context.seccomp
    if context.seccomp_profile_path:
        return profiles.from_string(context.seccomp_profile_path, "linux.security_context.seccomp_profile_path")
    if runtime.unset_seccomp_profile:
        return profiles.from_string(runtime.unset_seccomp_profile, "unset_seccomp_profile")
    return None


def _read(path: str, facts: HostFacts) -> bytes:
    try:
        return facts.host.read(path)
    except OSError as error:
        raise InvalidArgument(f"{_FIELD}.localhost_ref: {path}: {error.strerror or error}") from error


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / "default_seccomp.toml").read_text())


def _allow(names: list[str], condition: Json | None = None) -> Json:
    rule: Json = {"names": names, "action": "SCMP_ACT_ALLOW"}
    if condition:
        rule["args"] = [{name: condition[name] for name in _ARGUMENT_MEMBERS if condition.get(name) is not None}]
    return rule


def _rule(rule: Any, where: str) -> Json:
    found = _members(rule, _SYSCALL_MEMBERS, where)
    if not found.get("names") or not found.get("action"):
        raise InvalidArgument(f"{_FIELD}: {where}: needs names and action")
    if "args" in found:
        found["args"] = [
            _members(argument, _ARGUMENT_MEMBERS, f"{where}.args[{index}]")
            for index, argument in enumerate(found["args"])
        ]
    return found


def _members(value: Any, known: dict[str, type], where: str) -> Json:
    """Return the known members of a JSON object, checking their types; empty ones are left out."""
    if not isinstance(value, dict):
        raise InvalidArgument(f"{_FIELD}: {where}: want an object")
    found: Json = {}
    for name, type_ in known.items():
        member = value.get(name)
        if member is None or member in ("", []):
            continue
        if not isinstance(member, type_) or isinstance(member, bool):
            raise InvalidArgument(f"{_FIELD}: {where}: {name} must be a {type_.__name__}")
        found[name] = member
    return found
