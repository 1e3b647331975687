"""ListPodSandbox and ListContainers: the cached messages of what passes the filter, joined."""

from collections.abc import Iterator

import grpc

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.node import Node
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.model import select_containers, select_pods

#: Bytes of items in one message of a Stream… RPC: well below the 16 MiB that a kubelet takes.
BATCH = 4 * 1024 * 1024


def list_pod_sandbox(node: Node, request: cri.ListPodSandboxRequest, context: grpc.ServicerContext) -> bytes:
    """Return a serialised ListPodSandboxResponse."""
    return b"".join(pod.item() for pod in _pods(node, request.filter))


def list_containers(node: Node, request: cri.ListContainersRequest, context: grpc.ServicerContext) -> bytes:
    """Return a serialised ListContainersResponse."""
    return b"".join(container.item() for container in _containers(node, request.filter))


def stream_pod_sandboxes(
    node: Node, request: cri.StreamPodSandboxesRequest, context: grpc.ServicerContext
) -> Iterator[bytes]:
    """Yield serialised StreamPodSandboxesResponses, bounded by size."""
    return batches(pod.item() for pod in _pods(node, request.filter))


def stream_containers(
    node: Node, request: cri.StreamContainersRequest, context: grpc.ServicerContext
) -> Iterator[bytes]:
    """Yield serialised StreamContainersResponses, bounded by size."""
    return batches(container.item() for container in _containers(node, request.filter))


def batches(items: Iterator[bytes]) -> Iterator[bytes]:
    """Join framed items into messages of about BATCH bytes; no items make no message."""
    batch: list[bytes] = []
    size = 0
    for item in items:
        if batch and size + len(item) > BATCH:
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        yield b"".join(batch)


def _pods(node: Node, chosen: cri.PodSandboxFilter) -> list[Pod]:
    return select_pods(node.model.pods(), chosen)


def _containers(node: Node, chosen: cri.ContainerFilter) -> list[Container]:
    return select_containers(node.model.containers(), chosen)
