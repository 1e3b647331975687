"""What a node can do for an adjustment of one container, from what decides that container's spec."""

import functools
from collections.abc import Sequence

from bulkhead.errors import BulkheadError, FailedPrecondition
from sandbox_svc.nri.apply import Abilities
from sandbox_svc.oci import cdi, resources
from sandbox_svc.oci.model import ContainerInput, Json


def of(request: ContainerInput) -> Abilities:
    """Return the abilities: classes and devices of the node's configuration, scores and limits that its kernel has."""
    facts, runtime = request.facts, request.runtime

    def inject(spec: Json, names: Sequence[str]) -> None:
        if not runtime.enable_cdi:
            raise FailedPrecondition(f"NRI adjustment.CDI_devices: {', '.join(names)}: CDI is disabled (enable_cdi)")
        try:
            cdi.inject(spec, names, request.hardware)
        except BulkheadError as error:
            raise FailedPrecondition(f"NRI adjustment.CDI_devices: {error}") from error

    return Abilities(
        inject_cdi=inject,
        blockio_class=request.hardware.block_io,
        propagation=facts.host.propagation,
        oom_score=functools.partial(resources.oom_score, facts=facts, restrict=runtime.restrict_oom_score_adj),
        swap_accounting=facts.swap_accounting,
        hugepages=facts.hugetlb and not runtime.disable_hugetlb_controller,
        net_devices=request.runtime_facts.net_devices,
        memory_policy=request.runtime_facts.memory_policy,
        scheduling=request.runtime_facts.scheduling,
    )
