"""What plugins change in linux.resources, of a container that is being made or of one that runs."""

from collections.abc import Callable

from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd import nri_pb2 as nri
from sandbox_svc.nri.convert_resources import CPU, MEMORY
from sandbox_svc.oci.model import Json


def limits(found: Json, wanted: nri.LinuxResources, *, swap: bool, hugepages: bool, zeros: bool = True) -> None:
    """Set the limits that are said; with `zeros` false a zero is "not said", as in the CRI's updates."""
    _cpu(found, wanted.cpu, zeros)
    _memory(found, wanted.memory, swap)
    if hugepages:
        for limit in wanted.hugepage_limits:
            _hugepages(found, limit)
    if wanted.unified:
        found["unified"] = {**(found.get("unified") or {}), **wanted.unified}
    if wanted.HasField("pids"):
        found["pids"] = {"limit": max(wanted.pids.limit, -1)}


def _cpu(found: Json, wanted: nri.LinuxCPU, zeros: bool) -> None:
    values: Json = {}
    for field, member in CPU.items():
        if wanted.HasField(field):
            value = getattr(wanted, field).value
            if value or zeros:
                values[member] = value
    values |= {name: value for name, value in (("cpus", wanted.cpus), ("mems", wanted.mems)) if value}
    if values:
        found["cpu"] = {**(found.get("cpu") or {}), **values}


def _memory(found: Json, wanted: nri.LinuxMemory, swap: bool) -> None:
    """Set memory's limits; its sum with swap is the limit (no swap) unless more is said."""
    values: Json = {}
    for field, member in MEMORY.items():
        if wanted.HasField(field):
            values[member] = getattr(wanted, field).value
    if not values.get("limit"):
        values.pop("limit", None)
    elif not values.get("swap"):
        values["swap"] = values["limit"]
    if not swap or not values.get("swap"):
        values.pop("swap", None)
    if values:
        found["memory"] = {**(found.get("memory") or {}), **values}


def _hugepages(found: Json, wanted: nri.HugepageLimit) -> None:
    if not wanted.page_size:
        raise FailedPrecondition("NRI resources.hugepage_limits: page_size is empty, expected one such as 2MB")
    others = [limit for limit in found.get("hugepageLimits") or () if limit["pageSize"] != wanted.page_size]
    found["hugepageLimits"] = [*others, {"pageSize": wanted.page_size, "limit": wanted.limit}]


def device_rules(found: Json, wanted: nri.LinuxResources) -> None:
    """Add rules of the device controller after those that are there: the last that fits counts."""
    for rule in wanted.devices:
        entry: Json = {"allow": rule.allow}
        if rule.type:
            entry["type"] = rule.type
        for field in ("major", "minor"):
            if rule.HasField(field):
                entry[field] = getattr(rule, field).value
        if rule.access:
            entry["access"] = rule.access
        found.setdefault("devices", []).append(entry)


def add_device_rule(found: Json, kind: str, major: int, minor: int, access: str) -> None:
    """Let a container use one device."""
    found.setdefault("devices", []).append(
        {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}
    )


def blockio_class(found: Json, wanted: nri.LinuxResources, resolve: Callable[[str], Json]) -> None:
    """Set the block I/O parameters of a class of the node; an empty name takes them away."""
    if not wanted.HasField("blockio_class"):
        return
    if wanted.blockio_class.value:
        found["blockIO"] = resolve(wanted.blockio_class.value)
    else:
        found.pop("blockIO", None)
