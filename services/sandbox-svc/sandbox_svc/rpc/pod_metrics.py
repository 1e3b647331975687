"""ListMetricDescriptors, ListPodSandboxMetrics and StreamPodSandboxMetrics."""

from collections.abc import Iterator

import grpc

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup
from sandbox_svc.node import Node
from sandbox_svc.rpc.lists import batches
from sandbox_svc.stats import metrics
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.messages import framed


def list_metric_descriptors(
    node: Node, request: cri.ListMetricDescriptorsRequest, context: grpc.ServicerContext
) -> cri.ListMetricDescriptorsResponse:
    """Return the names, meanings and labels of all metrics."""
    return cri.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())


def list_pod_sandbox_metrics(
    node: Node, request: cri.ListPodSandboxMetricsRequest, context: grpc.ServicerContext
) -> bytes:
    """Return a serialised ListPodSandboxMetricsResponse: every ready pod and its running containers."""
    return b"".join(_items(node))


def stream_pod_sandbox_metrics(
    node: Node, request: cri.StreamPodSandboxMetricsRequest, context: grpc.ServicerContext
) -> Iterator[bytes]:
    """Yield serialised StreamPodSandboxMetricsResponses, bounded by size."""
    return batches(_items(node))


def _items(node: Node) -> Iterator[bytes]:
    views = [_pod(node, pod) for pod in node.model.pods() if pod.state == cri.SANDBOX_READY]
    return (framed(found.SerializeToString()) for found in metrics.collect(views))


def _pod(node: Node, pod: Pod) -> metrics.PodView:
    source, metadata = node.pod_source(pod), pod.record.config.metadata
    labels = metrics.Labels("", _path(source.cgroup), "", "", metadata.namespace, metadata.name)
    running = [c for c in node.model.containers_of(pod) if c.state == cri.CONTAINER_RUNNING]
    views = [_container(node, container, labels) for container in running]
    return metrics.PodView(pod.id, labels, source.cgroup, source.netns, views)


def _container(node: Node, container: Container, pod: metrics.Labels) -> metrics.ContainerView:
    record, source = container.record, node.container_source(container)
    image = record.config.image.user_specified_image or record.image_name or record.config.image.image
    return metrics.ContainerView(
        id=record.id,
        labels=metrics.Labels(
            record.config.metadata.name, _path(record.cgroup), image, record.id, pod.namespace, pod.pod
        ),
        cgroup=source.cgroup,
        started_at=record.started_at,
        pid=record.process.pid if record.process else 0,
        layer=source.layer,
        layer_usage=node.collector.layer_usage(source),
    )


def _path(group: str) -> str:
    return f"/{cgroup.relative(group)}" if group else ""
