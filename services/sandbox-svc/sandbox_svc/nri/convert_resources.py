"""Limits in three languages: the OCI runtime specification's linux.resources, the CRI's, and NRI's LinuxResources."""

from typing import Any

from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import Json

#: NRI field -> member of linux.resources.memory and linux.resources.cpu; each value is an Optional message.
MEMORY = {
    "limit": "limit",
    "reservation": "reservation",
    "swap": "swap",
    "kernel": "kernel",
    "kernel_tcp": "kernelTCP",
    "swappiness": "swappiness",
    "disable_oom_killer": "disableOOMKiller",
    "use_hierarchy": "useHierarchy",
}
CPU = {
    "shares": "shares",
    "quota": "quota",
    "period": "period",
    "realtime_runtime": "realtimeRuntime",
    "realtime_period": "realtimePeriod",
}


def from_oci(found: Json | None) -> nri.LinuxResources | None:
    """Return a spec's linux.resources as plugins see them; None for a spec without."""
    if found is None:
        return None
    answer = nri.LinuxResources(unified=found.get("unified") or {})
    if (memory := found.get("memory")) is not None:
        answer.memory.SetInParent()
        _copy(memory, answer.memory, MEMORY)
    if (cpu := found.get("cpu")) is not None:
        answer.cpu.cpus, answer.cpu.mems = cpu.get("cpus", ""), cpu.get("mems", "")
        answer.cpu.SetInParent()
        _copy(cpu, answer.cpu, CPU)
    for limit in found.get("hugepageLimits") or ():
        answer.hugepage_limits.add(page_size=limit["pageSize"], limit=limit["limit"])
    for rule in found.get("devices") or ():
        entry = answer.devices.add(allow=rule["allow"], type=rule.get("type", ""), access=rule.get("access", ""))
        _copy(rule, entry, {"major": "major", "minor": "minor"})
    if (pids := found.get("pids")) is not None:
        answer.pids.limit = pids.get("limit") or 0
        answer.pids.SetInParent()
    return answer


def _copy(found: Json, target: Any, members: dict[str, str]) -> None:
    for field, member in members.items():
        if found.get(member) is not None:
            getattr(target, field).value = found[member]
            getattr(target, field).SetInParent()


def from_cri(found: cri.LinuxContainerResources) -> nri.LinuxResources:
    """Return the CRI's limits as plugins see them: what the CRI can say is always set, its zeros included."""
    answer = nri.LinuxResources(
        cpu=nri.LinuxCPU(
            shares=nri.OptionalUInt64(value=max(0, found.cpu_shares)),
            quota=nri.OptionalInt64(value=found.cpu_quota),
            period=nri.OptionalUInt64(value=max(0, found.cpu_period)),
            cpus=found.cpuset_cpus,
            mems=found.cpuset_mems,
        ),
        memory=nri.LinuxMemory(limit=nri.OptionalInt64(value=found.memory_limit_in_bytes)),
        unified=found.unified,
    )
    if found.memory_swap_limit_in_bytes:
        answer.memory.swap.value = found.memory_swap_limit_in_bytes
    for limit in found.hugepage_limits:
        answer.hugepage_limits.add(page_size=limit.page_size, limit=limit.limit)
    return answer


def to_cri(found: nri.LinuxResources) -> cri.LinuxContainerResources:
    """Return what the CRI has words for, as a container's status shows it; a zero is "not said" there."""
    answer = cri.LinuxContainerResources(
        cpu_shares=found.cpu.shares.value,
        cpu_quota=found.cpu.quota.value,
        cpu_period=found.cpu.period.value,
        cpuset_cpus=found.cpu.cpus,
        cpuset_mems=found.cpu.mems,
        memory_limit_in_bytes=found.memory.limit.value,
        memory_swap_limit_in_bytes=found.memory.swap.value,
        unified=found.unified,
    )
    for limit in found.hugepage_limits:
        answer.hugepage_limits.add(page_size=limit.page_size, limit=limit.limit)
    return answer
