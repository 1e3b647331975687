"""What an adjustment changes in a container's process, its annotations and its hooks."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.containerd import nri_pb2 as nri
from sandbox_svc.nri.convert_spec import HOOKS
from sandbox_svc.nri.keys import entries, name_of, removal
from sandbox_svc.oci.model import Json

_RLIMIT = re.compile(r"RLIMIT_[A-Z]+")


def annotations(spec: Json, wanted: Mapping[str, str]) -> None:
    """Set and remove annotations."""
    if wanted:
        entries(spec.setdefault("annotations", {}), wanted, "annotations")


def environment(process: Json, wanted: Sequence[nri.KeyValue]) -> None:
    """Set and remove variables: one that is there is changed in its place, a new one is put at the end."""
    if not wanted:
        return
    changes: dict[str, str | None] = {}
    for entry in wanted:
        name, gone = removal(entry.key)
        if not name or "=" in name:
            raise FailedPrecondition(f"NRI adjustment.env: {entry.key!r} is no name of a variable")
        changes[name] = None if gone else entry.value
    kept: dict[str, str] = {}
    for old in process.get("env") or ():
        name, equals, value = old.partition("=")
        if equals:
            kept[name] = value
    for name, new in changes.items():
        if new is None:
            kept.pop(name, None)
        else:
            kept[name] = new
    process["env"] = [f"{name}={value}" for name, value in kept.items()]


def arguments(process: Json, wanted: Sequence[str]) -> None:
    """Replace the arguments as a whole."""
    if wanted:
        process["args"] = list(wanted)


def hooks(spec: Json, wanted: nri.Hooks) -> None:
    """Add hooks after those that are there; the runtime runs them in that order."""
    for field, member in HOOKS.items():
        for hook in getattr(wanted, field):
            if not hook.path.startswith("/"):
                raise FailedPrecondition(
                    f"NRI adjustment.hooks.{field}: path is {hook.path!r}, expected an absolute path"
                )
            spec.setdefault("hooks", {}).setdefault(member, []).append(_hook(hook, field))


def _hook(hook: nri.Hook, field: str) -> Json:
    entry: Json = {"path": hook.path}
    if hook.args:
        entry["args"] = list(hook.args)
    if hook.env:
        entry["env"] = list(hook.env)
    if hook.HasField("timeout"):
        if hook.timeout.value <= 0:
            raise FailedPrecondition(
                f"NRI adjustment.hooks.{field}: timeout is {hook.timeout.value}, expected seconds above 0"
            )
        entry["timeout"] = hook.timeout.value
    return entry


def oom_score(process: Json, wanted: nri.LinuxContainerAdjustment, possible: Callable[[int], int]) -> None:
    """Set the OOM score, as far as the node can."""
    if wanted.HasField("oom_score_adj"):
        try:
            process["oomScoreAdj"] = possible(wanted.oom_score_adj.value)
        except InvalidArgument as error:
            raise FailedPrecondition(f"NRI adjustment: {error}") from error


def io_priority(process: Json, wanted: nri.LinuxContainerAdjustment, *, known: bool = True) -> None:
    """Set the I/O priority; class NONE takes it away. A runtime that does not know it (`known`) would leave it out."""
    if not wanted.HasField("io_priority"):
        return
    kind = getattr(wanted.io_priority, "class")
    if kind == nri.IOPRIO_CLASS_NONE:
        process.pop("ioPriority", None)
        return
    _require(known, "io_priority")
    name = name_of(nri.IOPrioClass, kind, "linux.io_priority.class")
    process["ioPriority"] = {"class": name, "priority": wanted.io_priority.priority}


def scheduler(process: Json, wanted: nri.LinuxContainerAdjustment, *, known: bool = True) -> None:
    """Set the scheduling policy and its attributes; policy NONE takes them away. `known` is as for io_priority."""
    if not wanted.HasField("scheduler"):
        return
    found = wanted.scheduler
    if found.policy == nri.SCHED_NONE:
        process.pop("scheduler", None)
        return
    _require(known, "scheduler")
    values = {name: getattr(found, name) for name in ("nice", "priority", "runtime", "deadline", "period")}
    process["scheduler"] = {
        "policy": name_of(nri.LinuxSchedulerPolicy, found.policy, "linux.scheduler.policy"),
        **{name: value for name, value in values.items() if value},
    }
    if found.flags:
        process["scheduler"]["flags"] = [
            name_of(nri.LinuxSchedulerFlag, flag, "linux.scheduler.flags") for flag in found.flags
        ]


def _require(known: bool, field: str) -> None:
    if not known:
        raise FailedPrecondition(
            f"NRI adjustment.linux.{field}, which the OCI runtime does not know of (it came with version 1.1 of the "
            "runtime specification; `features` tells the newest that is known as ociVersionMax)"
        )


def rlimits(process: Json, wanted: Iterable[nri.POSIXRlimit]) -> None:
    """Set limits of the process; one of a type that is there takes its place, as runtimes refuse a type twice."""
    for limit in wanted:
        if not _RLIMIT.fullmatch(limit.type):
            raise FailedPrecondition(f"NRI adjustment.rlimits: type is {limit.type!r}, expected RLIMIT_…")
        if limit.soft > limit.hard:
            raise FailedPrecondition(
                f"NRI adjustment.rlimits: {limit.type} has soft {limit.soft} above hard {limit.hard}"
            )
        others = [found for found in process.get("rlimits") or () if found["type"] != limit.type]
        process["rlimits"] = [*others, {"type": limit.type, "hard": limit.hard, "soft": limit.soft}]
