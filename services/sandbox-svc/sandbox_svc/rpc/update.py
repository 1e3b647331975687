"""UpdateContainerResources, UpdatePodSandboxResources and UpdateRuntimeConfig: what may change while things run."""

import functools
import logging

import grpc

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import limits, validate
from sandbox_svc.cni import template
from sandbox_svc.node import Node
from sandbox_svc.nri_exec import between
from sandbox_svc.oci.resources import updated

logger = logging.getLogger(__name__)


def update_container_resources(
    node: Node, request: cri.UpdateContainerResourcesRequest, context: grpc.ServicerContext
) -> cri.UpdateContainerResourcesResponse:
    """Change a container's limits in place; of one that is not started yet, those that it will start with.

    Plugins may want others than the kubelet's, and others for other containers.
    """
    validate.no_nul(request, "")
    container = node.model.container(request.container_id)
    before = functools.partial(updated, wanted=request.linux, facts=node.facts, runtime=node.config.runtime)
    with container.operation:
        with node.nri.operation():
            limits.require_changeable(container)
            wanted = node.nri.updating(container, request.linux)
            if wanted is None:
                limits.change(container, node.bundle(container.id), before, request.linux, request.annotations)
            else:
                node.nri.runtime.change(container, wanted, before, request.linux, request.annotations)
            node.nri.updated(container)
        between.updated(node, container)
    return cri.UpdateContainerResourcesResponse()


def update_pod_sandbox_resources(
    node: Node, request: cri.UpdatePodSandboxResourcesRequest, context: grpc.ServicerContext
) -> cri.UpdatePodSandboxResourcesResponse:
    """Take note of a pod's new overhead and sum of resources: its cgroup is the kubelet's, who has set it already."""
    validate.no_nul(request, "")
    pod = node.model.pod(request.pod_sandbox_id)
    with pod.operation, node.nri.operation():
        pod.require_present()
        node.nri.updating_pod(pod, request)
        config = cri.PodSandboxConfig()
        config.CopyFrom(pod.record.config)
        if request.HasField("overhead"):
            config.linux.overhead.CopyFrom(request.overhead)
        if request.HasField("resources"):
            config.linux.resources.CopyFrom(request.resources)
        pod.update(config=config)
        node.nri.updated_pod(pod)
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
