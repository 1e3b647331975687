"""One plugin's wishes about resources, put on top of what there is (pure)."""

from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.containerd.nri_pb2 import Field, LinuxResources
from sandbox_svc.nri.owners import Owners

#: Fields of LinuxMemory and LinuxCPU that are messages (absent: not set), and what they are owned as.
_OPTIONAL = {
    "memory": (
        ("limit", Field.MemLimit),
        ("reservation", Field.MemReservation),
        ("swap", Field.MemSwapLimit),
        ("kernel", Field.MemKernelLimit),
        ("kernel_tcp", Field.MemTCPLimit),
        ("swappiness", Field.MemSwappiness),
        ("disable_oom_killer", Field.MemDisableOomKiller),
        ("use_hierarchy", Field.MemUseHierarchy),
    ),
    "cpu": (
        ("shares", Field.CPUShares),
        ("quota", Field.CPUQuota),
        ("period", Field.CPUPeriod),
        ("realtime_runtime", Field.CPURealtimeRuntime),
        ("realtime_period", Field.CPURealtimePeriod),
    ),
}
_CPUSETS = (("cpus", Field.CPUSetCPUs), ("mems", Field.CPUSetMems))
_CLASSES = (("blockio_class", Field.BlockioClass), ("rdt_class", Field.RdtClass), ("pids", Field.PidsLimit))


def merge(wish: LinuxResources, targets: tuple[LinuxResources, ...], owners: Owners, id: str, plugin: str) -> None:
    """Put what a plugin set into each of the targets; FailedPrecondition if another plugin set the same.

    Device rules are not owned, and not part of it: a plugin may give them only to a container that is being created.
    """
    for part, fields in _OPTIONAL.items():
        for name, field in fields:
            if getattr(wish, part).HasField(name):
                owners.claim(id, field, plugin)
                for target in targets:
                    getattr(getattr(target, part), name).CopyFrom(getattr(getattr(wish, part), name))
    for name, field in _CPUSETS:
        if value := getattr(wish.cpu, name):
            owners.claim(id, field, plugin)
            for target in targets:
                setattr(target.cpu, name, value)
    for limit in wish.hugepage_limits:
        owners.claim(id, Field.HugepageLimits, plugin, limit.page_size)
        for target in targets:
            _set_hugepages(target, limit)
    for key, value in sorted(wish.unified.items()):
        owners.claim(id, Field.CgroupsUnified, plugin, key)
        for target in targets:
            target.unified[key] = value
    for name, field in _CLASSES:
        if wish.HasField(name):
            owners.claim(id, field, plugin)
            for target in targets:
                getattr(target, name).CopyFrom(getattr(wish, name))


def _set_hugepages(target: LinuxResources, limit: nri.HugepageLimit) -> None:
    """Set the limit of one page size: a later one of the same size replaces what was asked before plugins spoke."""
    for present in target.hugepage_limits:
        if present.page_size == limit.page_size:
            present.limit = limit.limit
            return
    target.hugepage_limits.append(limit)
