"""RDT classes: what the file behind rdt_config_file says, as schemata of the kernel's resctrl file system.

Source: the configuration format of goresctrl (pkg/rdt), which containerd reads it with, and the kernel's
Documentation/filesystems/resctrl.rst. A partition takes a share of every cache for itself alone; each class has a part
of its partition's share, and is a directory of resctrl that an OCI spec names as linux.intelRdt.closID.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox_svc.oci import rdt_cache
from sandbox_svc.oci.rdt_cache import Allocation, CacheInfo, parse_proportion
from sandbox_svc.yaml_reader import Item, parse

#: The class of resctrl's root, where every process is that was never put anywhere: by name, or by none.
ROOT_CLASS = "system/default"
LEVELS = ("L2", "L3")
_ALL = "all"
_MAX_MBPS = (1 << 32) - 1


@dataclass(frozen=True)
class BandwidthInfo:
    """What the kernel says of memory bandwidth allocation."""

    ids: tuple[int, ...]
    #: Percent.
    minimum: int
    #: Mounted with mba_MBps: values are MB/s, not percent.
    mbps: bool


@dataclass(frozen=True)
class Info:
    """What the processor can allocate, by cache level; nothing stands for "not at all"."""

    caches: Mapping[str, CacheInfo] = field(default_factory=dict)
    bandwidth: BandwidthInfo | None = None


@dataclass(frozen=True)
class RdtClass:
    """A class as it is to be set up."""

    #: Lines for its `schemata` file; "" where there is nothing to allocate.
    schemata: str
    deny_pod_annotation: bool = False
    deny_container_annotation: bool = False


def read(data: bytes, info: Info) -> dict[str, RdtClass]:
    """Return the classes of a file by name; ValueError for a file that is wrong, or asks for more than there is."""
    fields = parse(data).mapping({"options", "partitions"}, any_case=True)
    optional = _optional(fields.get("options"))
    partitions = fields["partitions"].mapping() if "partitions" in fields else {}
    tables = {name: _partition_fields(item) for name, item in partitions.items()}
    shares: dict[str, dict[str, dict[int, Allocation]]] = {}
    for level, cache in info.caches.items():
        wanted = {name: _cache(table.get(f"{level.lower()}Allocation"), cache) or {} for name, table in tables.items()}
        shares[level] = rdt_cache.partition(level, wanted, cache)
    found: dict[str, RdtClass] = {}
    for name, table in tables.items():
        own = {level: by_name[name] for level, by_name in shares.items()}
        for class_name, item in table["classes"].mapping().items() if "classes" in table else ():
            key = class_name or ROOT_CLASS
            if key in found:
                raise item.error("the class stands twice")
            if not qualified(key):
                raise item.error("want the name of a directory")
            found[key] = _class(item, table, own, info, optional)
    return found


def qualified(name: str) -> bool:
    """Tell whether a class may have this name: that of a directory, or the root's."""
    return name == ROOT_CLASS or (
        len(name.encode()) < 4096 and name not in ("", ".", "..") and not set(name) & set("/\n\0")
    )


def _partition_fields(item: Item) -> dict[str, Item]:
    return item.mapping({"l2Allocation", "l3Allocation", "mbAllocation", "classes"}, any_case=True)


def _optional(item: Item | None) -> frozenset[str]:
    """Return what may be left out where the processor cannot do it: "L2", "L3" and "MB"."""
    found = set()
    for name, option in item.mapping({"l2", "l3", "mb"}, any_case=True).items() if item is not None else ():
        flags = option.mapping({"optional"}, any_case=True)
        if "optional" in flags and flags["optional"].boolean():
            found.add(name.upper())
    return frozenset(found)


def _class(item: Item, partition: dict[str, Item], shares: Any, info: Info, optional: frozenset[str]) -> RdtClass:
    fields = item.mapping({"l2Allocation", "l3Allocation", "mbAllocation", "kubernetes"}, any_case=True)
    lines = []
    for level in LEVELS:
        member, cache = f"{level.lower()}Allocation", info.caches.get(level)
        _check_asked(item, fields, partition, member)
        if cache is not None:
            lines += rdt_cache.lines(level, _cache(fields.get(member), cache), shares[level], cache)
        elif member in fields and level not in optional:
            raise fields[member].error(f"this machine has no {level} cache allocation")
    _check_asked(item, fields, partition, "mbAllocation")
    if info.bandwidth is not None:
        base = _bandwidth(partition.get("mbAllocation"), info.bandwidth) or {}
        lines.append(_bandwidth_line(_bandwidth(fields.get("mbAllocation"), info.bandwidth), base, info.bandwidth))
    elif "mbAllocation" in fields and "MB" not in optional:
        raise fields["mbAllocation"].error("this machine has no memory bandwidth allocation")
    rules = fields.get("kubernetes")
    flags = rules.mapping({"denyPodAnnotation", "denyContainerAnnotation"}, any_case=True) if rules is not None else {}
    denied = {name: flag.boolean() for name, flag in flags.items()}
    return RdtClass(
        "".join(f"{line}\n" for line in lines),
        denied.get("denyPodAnnotation", False),
        denied.get("denyContainerAnnotation", False),
    )


def _check_asked(item: Item, fields: dict[str, Item], partition: dict[str, Item], member: str) -> None:
    if member in fields and member not in partition:
        raise item.error(f"has {member}, its partition has none")


def _cache(item: Item | None, cache: CacheInfo) -> dict[int, Allocation] | None:
    """Return what is wanted of each cache of a level; None where nothing is said, all of it for those not named."""
    if item is None:
        return None
    table = {_ALL: item} if item.is_text else item.mapping()
    default = _allocation(table[_ALL], cache) if _ALL in table else Allocation(unified=parse_proportion("100%", cache))
    found = dict.fromkeys(cache.ids, default)
    for key, value in table.items():
        if key != _ALL:
            wanted = _allocation(value, cache)
            found |= {number: wanted for number in _numbers(key, value) if number in found}
    return found


def _allocation(item: Item, cache: CacheInfo) -> Allocation:
    fields = {"unified": item} if item.is_text else item.mapping({"unified", "code", "data"}, any_case=True)
    found = {}
    for name, value in fields.items():
        if text := value.text():
            try:
                found[name] = parse_proportion(text, cache)
            except ValueError as error:
                raise value.error(str(error)) from error
    if "unified" not in found:
        raise item.error("unified is missing")
    if ("code" in found) != ("data" in found):
        raise item.error("code and data go together")
    return Allocation(**found)


def _bandwidth(item: Item | None, info: BandwidthInfo) -> dict[int, int] | None:
    """Return the bandwidth of each id, in percent or MB/s; None where nothing is said."""
    if item is None:
        return None
    table = {_ALL: item} if item.is_list else item.mapping()
    default = _share(table[_ALL], info) if _ALL in table else (_MAX_MBPS if info.mbps else 100)
    found = dict.fromkeys(info.ids, default)
    for key, value in table.items():
        if key != _ALL:
            share = _share(value, info)
            found |= {number: share for number in _numbers(key, value) if number in found}
    return found


def _share(item: Item, info: BandwidthInfo) -> int:
    """Return the value of a list such as ["80%", "1000MBps"] that is in the kernel's unit."""
    unit, limit = ("MBps", _MAX_MBPS) if info.mbps else ("%", 100)
    for text in item.texts():
        digits = text.removesuffix(unit)
        if digits != text:
            if not (digits.isascii() and digits.isdigit()) or int(digits) > limit:
                raise item.error(f"{text[:80]!r}, expected 0 to {limit}{unit}")
            return int(digits)
    raise item.error(f"has no value in {unit}, which the kernel's resctrl takes")


def _bandwidth_line(wanted: dict[int, int] | None, base: dict[int, int], info: BandwidthInfo) -> str:
    values = []
    for number in sorted(info.ids):
        if info.mbps:
            value = min(_MAX_MBPS if wanted is None else wanted[number], base.get(number, _MAX_MBPS))
        else:
            whole = max(base.get(number, 100), info.minimum)
            value = max((100 if wanted is None else wanted[number]) * whole // 100, info.minimum)
        values.append(f"{number}={value}")
    return "MB:" + ";".join(values)


def _numbers(text: str, item: Item) -> list[int]:
    """Return the cache ids of a list such as 0,2-3."""
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not all(end.isascii() and end.isdigit() and len(end) <= 3 for end in ((low, high) if dash else (low,))):
            raise item.error(f"want {_ALL!r} or cache ids such as 0,2-3, got {text[:80]!r}")
        if dash and int(high) <= int(low):
            raise item.error(f"{part!r} is no range")
        found += range(int(low), int(high if dash else low) + 1)
    return found
