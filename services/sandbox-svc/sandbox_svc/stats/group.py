"""Everything a control group counts, as samples of the metrics in `descriptors`: the same from version 1 and 2.

A number that the kernel does not offer makes no sample. On hybrid hosts pressure comes from the version 2 tree.
"""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox_svc import cgroup
from sandbox_svc.stats import files, usage

_SECOND = 1_000_000_000
#: Version 1 limits above this mean none: the kernel rounds "unlimited" down to a page.
_UNLIMITED = 1 << 62
_HUGETLB = re.compile(r"hugetlb\.([^.]+)\.(?:usage_in_bytes|current)")


@dataclass(frozen=True)
class Sample:
    """One number: a metric's name without `container_`, its labels after the base ones, and the value."""

    name: str
    value: int
    labels: tuple[str, ...] = ()


def read(group: str, root: Path = cgroup.ROOT) -> list[Sample]:
    """Return the samples of a group (a cgroupsPath)."""
    below = cgroup.limited(group, root)
    if cgroup.mode(root) == "v2":
        directory = f"{root}/{below}"
        readers = (_cpu_v2, _memory_v2, _io_v2, _pids, _hugetlb, _pressure)
        return [sample for reader in readers for sample in reader(directory)]
    places = {name: f"{root}/{name}/{below}" for name in ("cpuacct", "cpu", "memory", "blkio", "pids", "hugetlb")}
    return [
        *_cpu_v1(places["cpuacct"], places["cpu"]),
        *_memory_v1(places["memory"]),
        *_blkio_v1(places["blkio"]),
        *_pids(places["pids"]),
        *_hugetlb(places["hugetlb"]),
        *_pressure(f"{root}/unified/{below}"),
    ]


def _cpu_v1(accounting: str, directory: str) -> Iterator[Sample]:
    for name, file in (("usage", "cpuacct.usage"), ("user", "cpuacct.usage_user"), ("system", "cpuacct.usage_sys")):
        if (value := files.number(accounting, file)) is not None:
            yield Sample(f"cpu_{name}_seconds_total", value // _SECOND)
    stat = files.fields(directory, "cpu.stat")
    yield from _throttling(stat, stat.get("throttled_time", 0))
    for name, file in (("period", "cpu.cfs_period_us"), ("quota", "cpu.cfs_quota_us"), ("shares", "cpu.shares")):
        if (value := files.number(directory, file)) is not None:
            yield Sample(f"spec_cpu_{name}", value)


def _cpu_v2(directory: str) -> Iterator[Sample]:
    stat = files.fields(directory, "cpu.stat")
    for name in ("usage", "user", "system"):
        if f"{name}_usec" in stat:
            yield Sample(f"cpu_{name}_seconds_total", stat[f"{name}_usec"] // 1_000_000)
    yield from _throttling(stat, stat.get("throttled_usec", 0) * 1000)
    if limits := files.read(directory, "cpu.max").decode().split():
        if limits[0] != "max":
            yield Sample("spec_cpu_quota", int(limits[0]))
        yield Sample("spec_cpu_period", int(limits[1]))
    if (weight := files.number(directory, "cpu.weight")) is not None:
        # The inverse of what the runtimes write for shares (runc's and crun's conversion).
        yield Sample("spec_cpu_shares", 2 + (weight - 1) * 262142 // 9999)


def _throttling(stat: dict[str, int], throttled: int) -> Iterator[Sample]:
    if "nr_periods" in stat:
        yield Sample("cpu_cfs_periods_total", stat["nr_periods"])
        yield Sample("cpu_cfs_throttled_periods_total", stat.get("nr_throttled", 0))
        yield Sample("cpu_cfs_throttled_seconds_total", throttled // _SECOND)


def _memory_v1(directory: str) -> Iterator[Sample]:
    used = files.number(directory, "memory.usage_in_bytes")
    if used is None:
        return
    stat = files.fields(directory, "memory.stat")
    yield from _memory(used, stat, "total_", rss="total_rss", cache="total_cache", mapped="total_mapped_file")
    yield Sample("memory_max_usage_bytes", files.number(directory, "memory.max_usage_in_bytes") or used)
    yield Sample("memory_swap", stat.get("total_swap", 0))
    yield Sample("memory_kernel_usage", files.number(directory, "memory.kmem.usage_in_bytes") or 0)
    yield Sample("memory_failcnt", files.number(directory, "memory.failcnt") or 0)
    yield Sample("oom_events_total", files.fields(directory, "memory.oom_control").get("oom_kill", 0))
    for name, file in (
        ("limit", "memory.limit_in_bytes"),
        ("reservation_limit", "memory.soft_limit_in_bytes"),
        ("swap_limit", "memory.memsw.limit_in_bytes"),
    ):
        yield Sample(f"spec_memory_{name}_bytes", _limit(files.number(directory, file)))


def _memory_v2(directory: str) -> Iterator[Sample]:
    used = files.number(directory, "memory.current")
    if used is None:
        return
    stat = files.fields(directory, "memory.stat")
    yield from _memory(used, stat, "", rss="anon", cache="file", mapped="file_mapped")
    yield Sample("memory_max_usage_bytes", files.number(directory, "memory.peak") or used)
    yield Sample("memory_swap", files.number(directory, "memory.swap.current") or 0)
    parts = ("kernel_stack", "pagetables", "percpu", "sock", "slab")
    # The sum stands in for `kernel` before Linux 5.18.
    yield Sample("memory_kernel_usage", stat.get("kernel", sum(stat.get(part, 0) for part in parts)))
    events = files.fields(directory, "memory.events")
    yield Sample("memory_failcnt", events.get("max", 0))
    yield Sample("oom_events_total", events.get("oom_kill", 0))
    limit, swap = (files.number(directory, f"memory.{name}") for name in ("max", "swap.max"))
    yield Sample("spec_memory_limit_bytes", _limit(limit))
    yield Sample("spec_memory_reservation_limit_bytes", _limit(files.number(directory, "memory.high")))
    # Version 2 limits swap by itself; the metric means both together, as in version 1.
    yield Sample("spec_memory_swap_limit_bytes", 0 if limit is None or swap is None else limit + swap)


def _memory(used: int, stat: dict[str, int], total: str, *, rss: str, cache: str, mapped: str) -> Iterator[Sample]:
    """Yield what both versions have in usage and memory.stat; `total` begins the names of the hierarchical numbers."""
    inactive = stat.get(f"{total}inactive_file", 0)
    yield Sample("memory_usage_bytes", used)
    yield Sample("memory_working_set_bytes", max(used - inactive, 0))
    yield Sample("memory_rss", stat.get(rss, 0))
    yield Sample("memory_cache", stat.get(cache, 0))
    yield Sample("memory_mapped_file", stat.get(mapped, 0))
    yield Sample("memory_total_active_file_bytes", stat.get(f"{total}active_file", 0))
    yield Sample("memory_total_inactive_file_bytes", inactive)
    for fault in ("pgfault", "pgmajfault"):
        yield Sample("memory_failures_total", stat.get(fault, 0), (fault, "container"))
        yield Sample("memory_failures_total", stat.get(total + fault, 0), (fault, "hierarchy"))


def _limit(value: int | None) -> int:
    return 0 if value is None or value > _UNLIMITED else value


def _blkio_v1(directory: str) -> Iterator[Sample]:
    """Read `8:0 Read 4096` lines; the throttling layer counts for every scheduler."""
    for file, names in (
        ("blkio.throttle.io_service_bytes_recursive", ("fs_reads_bytes_total", "fs_writes_bytes_total")),
        ("blkio.throttle.io_serviced_recursive", ("fs_reads_total", "fs_writes_total")),
    ):
        for words in map(str.split, files.read(directory, file).decode().splitlines()):
            if len(words) != 3:
                continue  # the last line is the sum of all devices
            numbers, operation, value = words[0], words[1], int(words[2])
            if file.endswith("bytes_recursive"):
                yield Sample("blkio_device_usage_total", value, (device(numbers), *numbers.split(":"), operation))
            if operation in ("Read", "Write"):
                yield Sample(names[operation == "Write"], value, (device(numbers),))


def _io_v2(directory: str) -> Iterator[Sample]:
    """Read `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0` lines."""
    for numbers, *pairs in map(str.split, files.read(directory, "io.stat").decode().splitlines()):
        counts = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs) if value.isdigit()}
        for key, name, operation in (("rbytes", "reads_bytes", "Read"), ("wbytes", "writes_bytes", "Write")):
            if key in counts:
                yield Sample(f"fs_{name}_total", counts[key], (device(numbers),))
                labels = (device(numbers), *numbers.split(":"), operation)
                yield Sample("blkio_device_usage_total", counts[key], labels)
        for key, name in (("rios", "reads"), ("wios", "writes")):
            if key in counts:
                yield Sample(f"fs_{name}_total", counts[key], (device(numbers),))


def _pids(directory: str) -> Iterator[Sample]:
    current = files.number(directory, "pids.current")
    if current is not None:
        yield Sample("threads", current)
        yield Sample("threads_max", files.number(directory, "pids.max") or 0)


def _hugetlb(directory: str) -> Iterator[Sample]:
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for match in filter(None, map(_HUGETLB.fullmatch, names)):
        size = match[1]
        used = files.number(directory, match[0])
        yield Sample("hugetlb_usage_bytes", used or 0, (size,))
        if (most := files.number(directory, f"hugetlb.{size}.max_usage_in_bytes")) is not None:
            yield Sample("hugetlb_max_usage_bytes", most, (size,))


def _pressure(directory: str) -> Iterator[Sample]:
    for what in ("cpu", "memory", "io"):
        found = usage.stall(directory, f"{what}.pressure")
        if found is not None:
            yield Sample(f"pressure_{what}_waiting_seconds_total", found.some.total // _SECOND)
            if found.full is not None:
                yield Sample(f"pressure_{what}_stalled_seconds_total", found.full.total // _SECOND)


@functools.lru_cache(maxsize=256)
def device(numbers: str) -> str:
    """Return the name of a block device by `major:minor`, as /dev has it; the numbers where sysfs has no name."""
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{numbers}"))
    except OSError:
        return numbers
