"""ContainerStats, PodSandboxStats and their lists."""

from collections.abc import Iterator

import grpc

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.node import Node
from sandbox_svc.rpc.lists import batches
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.messages import framed
from sandbox_svc.store.model import carries


def container_stats(
    node: Node, request: cri.ContainerStatsRequest, context: grpc.ServicerContext
) -> cri.ContainerStatsResponse:
    """Return one container's usage; NotFound if there is none by that id."""
    container = node.model.container(request.container_id)
    return cri.ContainerStatsResponse(stats=node.collector.container_stats(node.container_source(container)))


def list_container_stats(
    node: Node, request: cri.ListContainerStatsRequest, context: grpc.ServicerContext
) -> cri.ListContainerStatsResponse:
    """Return the usage of the running containers that pass the filter."""
    sources = [node.container_source(c) for c in chosen_containers(node, request.filter)]
    return cri.ListContainerStatsResponse(stats=node.collector.list_container_stats(sources))


def pod_sandbox_stats(
    node: Node, request: cri.PodSandboxStatsRequest, context: grpc.ServicerContext
) -> cri.PodSandboxStatsResponse:
    """Return one pod's usage; NotFound if there is none by that id."""
    pod = node.model.pod(request.pod_sandbox_id)
    return cri.PodSandboxStatsResponse(stats=node.collector.pod_stats(node.pod_source(pod)))


def list_pod_sandbox_stats(
    node: Node, request: cri.ListPodSandboxStatsRequest, context: grpc.ServicerContext
) -> cri.ListPodSandboxStatsResponse:
    """Return the usage of the ready pods that pass the filter."""
    sources = [node.pod_source(pod) for pod in chosen_pods(node, request.filter)]
    return cri.ListPodSandboxStatsResponse(stats=node.collector.list_pod_stats(sources))


def stream_container_stats(
    node: Node, request: cri.StreamContainerStatsRequest, context: grpc.ServicerContext
) -> Iterator[bytes]:
    """Yield serialised StreamContainerStatsResponses, bounded by size."""
    sources = [node.container_source(c) for c in chosen_containers(node, request.filter)]
    found = node.collector.list_container_stats(sources)
    return batches(framed(stats.SerializeToString()) for stats in found)


def stream_pod_sandbox_stats(
    node: Node, request: cri.StreamPodSandboxStatsRequest, context: grpc.ServicerContext
) -> Iterator[bytes]:
    """Yield serialised StreamPodSandboxStatsResponses, bounded by size."""
    found = node.collector.list_pod_stats([node.pod_source(pod) for pod in chosen_pods(node, request.filter)])
    return batches(framed(stats.SerializeToString()) for stats in found)


def chosen_containers(node: Node, chosen: cri.ContainerStatsFilter) -> list[Container]:
    """Return the running containers that pass a filter."""
    return [
        c
        for c in node.model.containers()
        if c.state == cri.CONTAINER_RUNNING
        and c.id.startswith(chosen.id)
        and c.record.sandbox_id.startswith(chosen.pod_sandbox_id)
        and carries(c.record.config.labels, chosen.label_selector)
    ]


def chosen_pods(node: Node, chosen: cri.PodSandboxStatsFilter) -> list[Pod]:
    """Return the ready pods that pass a filter."""
    return [
        p
        for p in node.model.pods()
        if p.state == cri.SANDBOX_READY
        and p.id.startswith(chosen.id)
        and carries(p.record.config.labels, chosen.label_selector)
    ]
