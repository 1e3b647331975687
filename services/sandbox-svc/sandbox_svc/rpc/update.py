"""UpdateContainerResources, UpdatePodSandboxResources and UpdateRuntimeConfig: what may change while things run."""

import json
import logging

import grpc

from bulkhead.errors import FailedPrecondition
from bulkhead.files import write_atomic
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import validate
from sandbox_svc.cni import template
from sandbox_svc.node import Node
from sandbox_svc.oci.resources import updated
from sandbox_svc.rpc import bundle
from sandbox_svc.store.entities import Container

logger = logging.getLogger(__name__)


def update_container_resources(
    node: Node, request: cri.UpdateContainerResourcesRequest, context: grpc.ServicerContext
) -> cri.UpdateContainerResourcesResponse:
    """Change a container's limits in place; of one that is not started yet, those that it will start with."""
    validate.no_nul(request, "")
    container = node.model.container(request.container_id)
    with container.operation:
        if container.state not in (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING):
            name = cri.ContainerState.Name(container.state)
            raise FailedPrecondition(f"container {container.id} is in state {name}, expected CREATED or RUNNING")
        place = node.bundle(container.id)
        spec = bundle.read(place)
        spec["linux"]["resources"] = updated(spec["linux"].get("resources", {}), request.linux, node.facts)
        if container.state == cri.CONTAINER_RUNNING:
            _apply(container, spec["linux"]["resources"], dict(request.annotations))
        write_atomic(place / "config.json", json.dumps(spec, separators=(",", ":")).encode())
        container.update(resources=_merged(container, request.linux).SerializeToString(deterministic=True))
    return cri.UpdateContainerResourcesResponse()


def _apply(container: Container, resources: dict[str, object], annotations: dict[str, str]) -> None:
    link = container.pod.link
    if link is None:
        raise FailedPrecondition(f"the shim of pod {container.pod.id} is gone")
    # Rules for devices are not limits; runtimes would set all of them anew.
    limits = {key: value for key, value in resources.items() if key != "devices"}
    link.update(container.id, json.dumps(limits).encode(), annotations)


def _merged(container: Container, wanted: cri.LinuxContainerResources) -> cri.LinuxContainerResources:
    """Return the limits as ContainerStatus shows them from now on: what the request leaves out stays."""
    merged = cri.LinuxContainerResources()
    if container.record.resources:
        merged.ParseFromString(container.record.resources)
    else:
        merged.CopyFrom(container.record.config.linux.resources)
    if wanted.hugepage_limits:
        del merged.hugepage_limits[:]
    merged.MergeFrom(wanted)
    return merged


def update_pod_sandbox_resources(
    node: Node, request: cri.UpdatePodSandboxResourcesRequest, context: grpc.ServicerContext
) -> cri.UpdatePodSandboxResourcesResponse:
    """Take note of a pod's new overhead and sum of resources: its cgroup is the kubelet's, who has set it already."""
    pod = node.model.pod(request.pod_sandbox_id)
    with pod.operation:
        config = cri.PodSandboxConfig()
        config.CopyFrom(pod.record.config)
        if request.HasField("overhead"):
            config.linux.overhead.CopyFrom(request.overhead)
        if request.HasField("resources"):
            config.linux.resources.CopyFrom(request.resources)
        pod.update(config=config)
    return cri.UpdatePodSandboxResourcesResponse()


def update_runtime_config(
    node: Node, request: cri.UpdateRuntimeConfigRequest, context: grpc.ServicerContext
) -> cri.UpdateRuntimeConfigResponse:
    """Write the node's network from the configured template, once the kubelet knows the pod ranges."""
    cidr = request.runtime_config.network_config.pod_cidr
    configured = bool(node.network("").networks())
    written = template.apply(node.config.runtime.cni, cidr, configured=configured)
    if written is not None:
        logger.info("pod CIDR %s: network written to %s", cidr, written)
    return cri.UpdateRuntimeConfigResponse()
