"""Cgroup path and limits, and the OOM score."""

import posixpath
from collections.abc import Mapping

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import ContainerInput, HostFacts, Json

#: The pause container yields to everything, and is killed last (kubernetes#47938).
SANDBOX_CPU_SHARES = 2
SANDBOX_OOM_SCORE = -998

#: Scope prefix of systemd units: `cri-containerd-<id>.scope` is what cAdvisor and dashboards look for.
_SCOPE_PREFIX = "cri-containerd"
_DEFAULT_SLICE = "system.slice"


def apply_cgroup_parent(spec: Json, parent: str, id: str, handler: RuntimeHandler, *, disabled: bool = False) -> None:
    """Put the container below its pod's cgroup, or leave it to the runtime where cgroups are disabled.

    A parent that ends in ".slice" is systemd's, for whom the runtimes want "slice:prefix:name"; any other is a path.
    Without a parent, a handler with SystemdCgroup gets systemd's own slice for services: its runtime takes no path.
    """
    if disabled:
        spec["linux"].pop("cgroupsPath", None)
        return
    if not parent and handler.options.get("SystemdCgroup"):
        parent = _DEFAULT_SLICE
    if not parent:
        return
    base = posixpath.basename(parent.rstrip("/"))
    path = f"{base}:{_SCOPE_PREFIX}:{id}" if base.endswith(".slice") else posixpath.join(parent, id)
    spec["linux"]["cgroupsPath"] = posixpath.normpath(path)


def apply_to_sandbox(spec: Json, facts: HostFacts, runtime: Runtime) -> None:
    """Give the pause container next to no CPU share and the best OOM score we may give."""
    if not runtime.disable_cgroup:
        spec["linux"]["resources"]["cpu"] = {"shares": SANDBOX_CPU_SHARES}
    spec["process"]["oomScoreAdj"] = oom_score(SANDBOX_OOM_SCORE, facts, runtime.restrict_oom_score_adj)


def apply_to_container(spec: Json, request: ContainerInput) -> None:
    """Set the limits that the request has; a zero is "not said" in the CRI. With disable_cgroup there are none."""
    if not request.config.linux.HasField("resources"):
        return
    wanted = request.config.linux.resources
    spec["process"]["oomScoreAdj"] = oom_score(
        wanted.oom_score_adj, request.facts, request.runtime.restrict_oom_score_adj
    )
    if request.runtime.disable_cgroup:
        return
    found = spec["linux"]["resources"]
    for member, values in (("cpu", _cpu(wanted)), ("memory", _memory(wanted, request.facts))):
        if values:
            found[member] = {**found.get(member, {}), **values}
    if pages := _hugepages(wanted, request.runtime, request.facts):
        found["hugepageLimits"] = _pages(pages)
    if wanted.unified:
        found["unified"] = {**found.get("unified", {}), **wanted.unified}


def updated(found: Json, wanted: cri.LinuxContainerResources, facts: HostFacts, runtime: Runtime) -> Json:
    """Return a spec's linux.resources with the limits of an update merged in; a zero leaves what is there."""
    merged = dict(found)
    for member, values in (
        ("cpu", _cpu(wanted)),
        ("memory", _memory(wanted, facts)),
        ("unified", dict(wanted.unified)),
    ):
        if values:
            merged[member] = {**found.get(member, {}), **values}
    if pages := _hugepages(wanted, runtime, facts):
        known = {limit["pageSize"]: limit["limit"] for limit in found.get("hugepageLimits", ())}
        merged["hugepageLimits"] = _pages(known | pages)
    return merged


def oom_score(wanted: int, facts: HostFacts, restrict: bool) -> int:
    """Return the score to set: never below ours where that is forbidden (restrict_oom_score_adj) or impossible.

    Without CAP_SYS_RESOURCE, runc and crun fail the whole container over a score that they cannot lower.
    """
    if not -1000 <= wanted <= 1000:
        raise InvalidArgument(f"linux.resources.oom_score_adj: want -1000 to 1000, got {wanted}")
    if restrict or not facts.can_lower_oom_score_adj:
        return max(wanted, facts.own_oom_score_adj)
    return wanted


def _cpu(wanted: cri.LinuxContainerResources) -> Json:
    for name, number in (("shares", wanted.cpu_shares), ("period", wanted.cpu_period)):
        if number < 0:
            raise InvalidArgument(f"linux.resources.cpu_{name}: negative ({number})")
    values = {
        "shares": wanted.cpu_shares,
        "quota": wanted.cpu_quota,
        "period": wanted.cpu_period,
        "cpus": wanted.cpuset_cpus,
        "mems": wanted.cpuset_mems,
    }
    return {name: value for name, value in values.items() if value}


def _memory(wanted: cri.LinuxContainerResources, facts: HostFacts) -> Json:
    """Return the memory limit and its sum with swap, which is the same (no swap) unless the request says more."""
    values: Json = {}
    if wanted.memory_limit_in_bytes:
        values["limit"] = wanted.memory_limit_in_bytes
    swap = wanted.memory_swap_limit_in_bytes or wanted.memory_limit_in_bytes
    if swap and facts.swap_accounting:
        values["swap"] = swap
    return values


def _hugepages(wanted: cri.LinuxContainerResources, runtime: Runtime, facts: HostFacts) -> dict[str, int]:
    """Return the limits of huge pages by page size, none where the configuration or the node's kernel has none."""
    if runtime.disable_hugetlb_controller or not wanted.hugepage_limits:
        return {}
    if not facts.hugetlb:
        if not runtime.tolerate_missing_hugetlb_controller:
            raise FailedPrecondition(
                "linux.resources.hugepage_limits: this node has no hugetlb cgroup controller "
                "(tolerate_missing_hugetlb_controller = true ignores such limits)"
            )
        return {}
    return {limit.page_size: limit.limit for limit in wanted.hugepage_limits}


def _pages(limits: Mapping[str, int]) -> list[Json]:
    return [{"pageSize": size, "limit": limit} for size, limit in limits.items()]
