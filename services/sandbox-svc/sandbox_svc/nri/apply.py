"""A merged adjustment applied to an OCI spec: one module a concern, in the order of NRI's own spec generator.

The functions change the spec they are given and raise FailedPrecondition, naming the adjustment's field, for what can
never be applied. A key that begins with "-" takes the entry of that name out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.containerd import nri_pb2 as nri
from sandbox_svc import validate
from sandbox_svc.nri import apply_linux, apply_mounts, apply_process, apply_resources
from sandbox_svc.oci.model import Json


@dataclass(frozen=True)
class Abilities:
    """What the node can do for an adjustment beyond writing it into the spec."""

    #: Edits the spec for CDI devices by their full names.
    inject_cdi: Callable[[Json, Sequence[str]], None]
    #: Returns linux.resources.blockIO of a class of the node.
    blockio_class: Callable[[str], Json]
    #: Returns "shared", "slave" or "private": how the mount propagates that holds a path of the node.
    propagation: Callable[[str], str]
    #: Returns the OOM score that can be set in the place of one that is asked for.
    oom_score: Callable[[int], int]
    swap_accounting: bool = True
    hugepages: bool = True
    #: Whether the OCI runtime knows of linux.netDevices.
    net_devices: bool = True
    #: Whether it knows of linux.memoryPolicy, and of process.scheduler and process.ioPriority.
    memory_policy: bool = True
    scheduling: bool = True


def apply(spec: Json, adjustment: nri.ContainerAdjustment, able: Abilities) -> None:
    """Change a spec as plugins want it."""
    try:
        validate.no_nul(adjustment, "NRI adjustment")
    except InvalidArgument as error:
        raise FailedPrecondition(str(error)) from error
    linux = adjustment.linux
    apply_process.annotations(spec, adjustment.annotations)
    apply_process.environment(spec["process"], adjustment.env)
    apply_process.arguments(spec["process"], adjustment.args)
    apply_process.hooks(spec, adjustment.hooks)
    if adjustment.CDI_devices:
        able.inject_cdi(spec, [device.name for device in adjustment.CDI_devices])
    apply_linux.devices(spec, linux.devices)
    apply_linux.cgroups_path(spec, linux.cgroups_path)
    apply_process.oom_score(spec["process"], linux, able.oom_score)
    apply_process.io_priority(spec["process"], linux, known=able.scheduling)
    apply_process.scheduler(spec["process"], linux, known=able.scheduling)
    apply_linux.seccomp(spec, linux)
    apply_linux.namespaces(spec, linux.namespaces)
    apply_linux.sysctls(spec, linux.sysctl)
    apply_linux.net_devices(spec, linux.net_devices, known=able.net_devices)
    apply_linux.memory_policy(spec, linux, known=able.memory_policy)
    if linux.HasField("resources"):
        found = spec["linux"].setdefault("resources", {})
        apply_resources.limits(found, linux.resources, swap=able.swap_accounting, hugepages=able.hugepages)
        apply_resources.device_rules(found, linux.resources)
        apply_resources.blockio_class(found, linux.resources, able.blockio_class)
        apply_linux.rdt_class(spec, linux.resources)
    apply_linux.rdt(spec, linux)
    apply_mounts.mounts(spec, adjustment.mounts, able.propagation)
    apply_process.rlimits(spec["process"], adjustment.rlimits)
