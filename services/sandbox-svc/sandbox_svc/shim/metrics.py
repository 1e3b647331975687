"""Task.Stats: the numbers of a container's cgroup in containerd's two formats."""

import os
from collections.abc import Iterable

from google.protobuf.message import Message

from bulkhead.proto.containerd import cgroups_v1_pb2 as v1
from bulkhead.proto.containerd import cgroups_v2_pb2 as v2
from sandbox_svc.shim.cgroup import Cgroup, key_values, lines, number

#: Field of v1.BlkIOStat -> its file.
_BLKIO = {
    "io_service_bytes_recursive": "blkio.throttle.io_service_bytes_recursive",
    "io_serviced_recursive": "blkio.throttle.io_serviced_recursive",
}
#: Field of v1.MemoryStat -> prefix of its four files.
_V1_MEMORY = {
    "usage": "memory",
    "swap": "memory.memsw",
    "kernel": "memory.kmem",
    "kernel_tcp": "memory.kmem.tcp",
}
#: Names in memory.stat that differ from the field's.
_V1_NAMES = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}


def collect(cgroup: Cgroup) -> Message:
    """Return io.containerd.cgroups.v2.Metrics on a unified host, else v1.Metrics; what has no file stays unset."""
    return _collect_v2(cgroup.paths[""]) if cgroup.unified else _collect_v1(cgroup)


def _collect_v1(cgroup: Cgroup) -> v1.Metrics:
    metrics = v1.Metrics()
    if directory := cgroup.directory("pids"):
        metrics.pids.current = number(f"{directory}/pids.current")
        metrics.pids.limit = _limit(number(f"{directory}/pids.max"))
    if directory := cgroup.directory("cpuacct"):
        metrics.cpu.usage.total = number(f"{directory}/cpuacct.usage")
        metrics.cpu.usage.user = number(f"{directory}/cpuacct.usage_user")
        metrics.cpu.usage.kernel = number(f"{directory}/cpuacct.usage_sys")
        metrics.cpu.usage.per_cpu.extend(_numbers(f"{directory}/cpuacct.usage_percpu"))
    if directory := cgroup.directory("cpu"):
        stat = dict(key_values(f"{directory}/cpu.stat"))
        throttling = metrics.cpu.throttling
        throttling.periods = stat.get("nr_periods", 0)
        throttling.throttled_periods = stat.get("nr_throttled", 0)
        throttling.throttled_time = stat.get("throttled_time", 0)
    if directory := cgroup.directory("memory"):
        _memory_v1(metrics, directory)
    if directory := cgroup.directory("blkio"):
        for field, name in _BLKIO.items():
            getattr(metrics.blkio, field).extend(_blkio(f"{directory}/{name}"))
    if directory := cgroup.directory("hugetlb"):
        for size in _huge_sizes(directory, "limit_in_bytes"):
            metrics.hugetlb.add(
                usage=number(f"{directory}/hugetlb.{size}.usage_in_bytes"),
                max=number(f"{directory}/hugetlb.{size}.max_usage_in_bytes"),
                failcnt=number(f"{directory}/hugetlb.{size}.failcnt"),
                pagesize=size,
            )
    return metrics


def _memory_v1(metrics: v1.Metrics, directory: str) -> None:
    _copy(metrics.memory, key_values(f"{directory}/memory.stat"), _V1_NAMES)
    for field, prefix in _V1_MEMORY.items():
        if not os.path.exists(f"{directory}/{prefix}.usage_in_bytes"):
            continue
        entry = getattr(metrics.memory, field)
        entry.usage = number(f"{directory}/{prefix}.usage_in_bytes")
        entry.limit = number(f"{directory}/{prefix}.limit_in_bytes")
        entry.max = number(f"{directory}/{prefix}.max_usage_in_bytes")
        entry.failcnt = number(f"{directory}/{prefix}.failcnt")
    names = {"oom_kill_disable": "oom_kill_disable", "under_oom": "under_oom", "oom_kill": "oom_kill"}
    _copy(metrics.memory_oom_control, key_values(f"{directory}/memory.oom_control"), names)


def _collect_v2(directory: str) -> v2.Metrics:
    metrics = v2.Metrics()
    metrics.pids.current = number(f"{directory}/pids.current")
    metrics.pids.limit = _limit(number(f"{directory}/pids.max"))
    _copy(metrics.cpu, key_values(f"{directory}/cpu.stat"), {})
    memory = metrics.memory
    _copy(memory, key_values(f"{directory}/memory.stat"), {})
    memory.usage = number(f"{directory}/memory.current")
    memory.usage_limit = number(f"{directory}/memory.max")
    memory.max_usage = number(f"{directory}/memory.peak")
    memory.swap_usage = number(f"{directory}/memory.swap.current")
    memory.swap_limit = number(f"{directory}/memory.swap.max")
    memory.swap_max_usage = number(f"{directory}/memory.swap.peak")
    _copy(metrics.memory_events, key_values(f"{directory}/memory.events"), {})
    for line in lines(f"{directory}/io.stat"):
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        entry = metrics.io.usage.add(major=int(major), minor=int(minor))
        _copy(entry, ((key, int(value)) for key, _, value in (pair.partition("=") for pair in pairs)), {})
    for size in _huge_sizes(directory, "current"):
        events = dict(key_values(f"{directory}/hugetlb.{size}.events"))
        metrics.hugetlb.add(
            current=number(f"{directory}/hugetlb.{size}.current"),
            max=number(f"{directory}/hugetlb.{size}.max"),
            pagesize=size,
            failcnt=events.get("max", 0),
        )
    return metrics


def _copy(message: Message, pairs: Iterable[tuple[str, int]], names: dict[str, str]) -> None:
    """Set the number fields that have the pairs' names, or the names they are translated to."""
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in pairs:
        field = names.get(name, name)
        if field in fields and fields[field].message_type is None:
            setattr(message, field, value)


def _limit(value: int) -> int:
    """Return a limit as containerd shows it: 0 where there is none."""
    return 0 if value == 2**64 - 1 else value


def _numbers(path: str) -> list[int]:
    return [int(word) for line in lines(path) for word in line.split() if word.isdigit()]


def _blkio(path: str) -> list[v1.BlkIOEntry]:
    entries = []
    for line in lines(path):
        words = line.split()
        if len(words) == 3:
            major, _, minor = words[0].partition(":")
            entries.append(v1.BlkIOEntry(major=int(major), minor=int(minor), op=words[1], value=int(words[2])))
    return entries


def _huge_sizes(directory: str, suffix: str) -> list[str]:
    names = (name.split(".") for name in os.listdir(directory) if name.startswith("hugetlb."))
    return sorted({parts[1] for parts in names if len(parts) == 3 and parts[2] == suffix})
