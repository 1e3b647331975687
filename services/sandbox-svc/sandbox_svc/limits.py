"""A container's limits, changed after its creation: by the kubelet's update and by plugins' wishes.

Limits stand in the bundle's config.json, which a start takes them from, and in the cgroup of what runs. Whoever changes
them holds the container's `limits` lock and needs no other: a plugin can change a container while an operation on that
one, which has the others, waits for the plugin.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from bulkhead.errors import FailedPrecondition
from bulkhead.files import write_atomic
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle
from sandbox_svc.oci.model import Json
from sandbox_svc.store.entities import Container


def change(
    container: Container,
    place: Path,
    edit: Callable[[Json], Json],
    shown: cri.LinuxContainerResources,
    annotations: Mapping[str, str] | None = None,
) -> None:
    """Change linux.resources of the bundle at `place` by `edit`, and in the cgroup if the container runs.

    Its status shows `shown` from then on, over what it showed. Raises as `require_changeable` does.
    """
    with container.limits:
        require_changeable(container)
        spec = bundle.read(place)
        spec["linux"]["resources"] = edit(spec["linux"].get("resources", {}))
        if container.state == cri.CONTAINER_RUNNING:
            _set(container, spec["linux"]["resources"], annotations or {})
        write_atomic(place / "config.json", json.dumps(spec, separators=(",", ":")).encode())
        container.limits_changed += 1
        container.update(resources=merged(container.record.resources, container.record.config, shown))


def require_changeable(container: Container) -> None:
    """Raise FailedPrecondition for a container that has ended, NotFound for one that is removed: it has no limits."""
    container.require_present()
    if container.state not in (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING):
        name = cri.ContainerState.Name(container.state)
        raise FailedPrecondition(f"container {container.id} is in state {name}, expected CREATED or RUNNING")


def catch_up(container: Container, place: Path, known: int) -> None:
    """Set in the cgroup what was changed since a start took its limits from the bundle (`limits_changed` was known)."""
    with container.limits:
        if container.limits_changed != known:
            _set(container, bundle.read(place)["linux"].get("resources", {}), {})


def merged(recorded: bytes, config: cri.ContainerConfig, wanted: cri.LinuxContainerResources) -> bytes:
    """Return the limits as ContainerStatus shows them from now on, serialised: what is not wanted anew stays."""
    found = cri.LinuxContainerResources()
    if recorded:
        found.ParseFromString(recorded)
    else:
        found.CopyFrom(config.linux.resources)
    if wanted.hugepage_limits:
        del found.hugepage_limits[:]
    found.MergeFrom(wanted)
    return found.SerializeToString(deterministic=True)


def _set(container: Container, resources: Json, annotations: Mapping[str, str]) -> None:
    link = container.pod.link
    if link is None:
        raise FailedPrecondition(f"the shim of pod {container.pod.id} is gone")
    # Rules for devices are not limits; runtimes would set all of them anew.
    limits = {key: value for key, value in resources.items() if key != "devices"}
    link.update(container.id, json.dumps(limits).encode(), dict(annotations))
