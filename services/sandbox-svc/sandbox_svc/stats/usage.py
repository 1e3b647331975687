"""What a control group has used, read from its files: the same numbers from version 1 and version 2.

The meaning of each number is cAdvisor's and containerd's, so that dashboards and eviction thresholds keep their
sense: working set = usage less inactive file cache; resident set = anonymous memory, with children; available = own
limit less working set, 0 without a limit. A number the kernel does not offer is None.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox_svc import cgroup
from sandbox_svc.stats import files

#: A version 1 limit above this means none: the kernel rounds "unlimited" down to a page.
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Pressure:
    """One line of a pressure file (Documentation/accounting/psi.rst): shares in percent, total in nanoseconds."""

    total: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True)
class Stall:
    """A pressure file: time in which some, and in which all tasks waited. `full` may be missing (cpu, old kernels)."""

    some: Pressure
    full: Pressure | None = None


@dataclass(frozen=True)
class Cpu:
    """Processor time used since the group was made, in nanoseconds."""

    used: int
    stall: Stall | None = None


@dataclass(frozen=True)
class Memory:
    """Memory in bytes; faults are counts."""

    usage: int
    working_set: int
    available: int
    resident: int
    faults: int
    major_faults: int
    swap: int | None = None
    swap_available: int | None = None
    stall: Stall | None = None


@dataclass(frozen=True)
class Usage:
    """One reading of a group; a part is None where its controller is not there or the group is gone."""

    cpu: Cpu | None = None
    memory: Memory | None = None
    processes: int | None = None
    io_stall: Stall | None = None


def read(group: str, root: Path = cgroup.ROOT) -> Usage:
    """Return what a group (a cgroupsPath) has used, its children included. Takes some 60 µs."""
    below = cgroup.limited(group, root)
    if cgroup.mode(root) == "v2":
        directory = f"{root}/{below}"
        return Usage(_cpu_v2(directory), _memory_v2(directory), _pids(directory), stall(directory, "io.pressure"))
    return Usage(
        _cpu_v1(f"{root}/cpuacct/{below}"), _memory_v1(f"{root}/memory/{below}"), _pids(f"{root}/pids/{below}")
    )


def _cpu_v1(directory: str) -> Cpu | None:
    used = files.number(directory, "cpuacct.usage")
    return None if used is None else Cpu(used)


def _memory_v1(directory: str) -> Memory | None:
    usage = files.number(directory, "memory.usage_in_bytes")
    if usage is None:
        return None
    stat = files.fields(directory, "memory.stat")
    working_set = max(usage - stat.get("total_inactive_file", 0), 0)
    limit = files.number(directory, "memory.limit_in_bytes")
    both, both_limit = (files.number(directory, f"memory.memsw.{name}_in_bytes") for name in ("usage", "limit"))
    return Memory(
        usage=usage,
        working_set=working_set,
        available=_left(limit, working_set) or 0,
        resident=stat.get("total_rss", 0),
        faults=stat.get("total_pgfault", 0),
        major_faults=stat.get("total_pgmajfault", 0),
        swap=None if both is None else stat.get("total_swap", max(both - usage, 0)),
        swap_available=None if both is None else _left(both_limit, both),
    )


def _cpu_v2(directory: str) -> Cpu | None:
    used = files.fields(directory, "cpu.stat").get("usage_usec")
    return None if used is None else Cpu(used * 1000, stall(directory, "cpu.pressure"))


def _memory_v2(directory: str) -> Memory | None:
    usage = files.number(directory, "memory.current")
    if usage is None:
        return None
    stat = files.fields(directory, "memory.stat")
    working_set = max(usage - stat.get("inactive_file", 0), 0)
    swap = files.number(directory, "memory.swap.current")
    return Memory(
        usage=usage,
        working_set=working_set,
        available=_left(files.number(directory, "memory.max"), working_set) or 0,
        resident=stat.get("anon", 0),
        faults=stat.get("pgfault", 0),
        major_faults=stat.get("pgmajfault", 0),
        swap=swap,
        swap_available=None if swap is None else _left(files.number(directory, "memory.swap.max"), swap),
        stall=stall(directory, "memory.pressure"),
    )


def _left(limit: int | None, used: int) -> int | None:
    """Return what is left of a limit, None if there is no limit."""
    return None if limit is None or limit > _UNLIMITED else max(limit - used, 0)


def _pids(directory: str) -> int | None:
    return files.number(directory, "pids.current")


def stall(directory: str, name: str) -> Stall | None:
    """Return a pressure file of a group; None where the kernel has none."""
    text = files.read(directory, name).decode()
    lines = {words[0]: _pressure(words[1:]) for words in map(str.split, text.splitlines()) if len(words) == 5}
    return Stall(lines["some"], lines.get("full")) if "some" in lines else None


def _pressure(words: Iterable[str]) -> Pressure:
    """Parse `avg10=0.00 avg60=0.00 avg300=0.00 total=0` (microseconds)."""
    pairs = dict(word.split("=", 1) for word in words)
    shares = (float(pairs[f"avg{seconds}"]) for seconds in (10, 60, 300))
    return Pressure(int(pairs["total"]) * 1000, *shares)
