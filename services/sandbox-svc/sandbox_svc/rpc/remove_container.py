"""RemoveContainer: kill it if it runs, forget it, and take its directories away behind the answer."""

import grpc

from bulkhead.errors import NotFound
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import reserve
from sandbox_svc.node import Node
from sandbox_svc.rpc.stop_container import stop
from sandbox_svc.store.entities import Container
from sandbox_svc.store.records import Phase


def remove_container(
    node: Node, request: cri.RemoveContainerRequest, context: grpc.ServicerContext
) -> cri.RemoveContainerResponse:
    """Remove a container.

    "This call is idempotent, and must not return an error if the container has already been removed" (CRI).
    """
    try:
        container = node.model.container(request.container_id)
    except NotFound:
        return cri.RemoveContainerResponse()
    remove(node, container, context)
    return cri.RemoveContainerResponse()


def remove(node: Node, container: Container, context: grpc.ServicerContext | None = None) -> None:
    """Remove a container, killing it first; returns when it is gone from every list, the disk follows."""
    with container.operation:
        if container.record.phase is Phase.REMOVING:
            return
        stop(node, container, 0.0, context)
        node.checkpoints.end(container.id)  # it reads what is taken away now
        with node.nri.teardown():
            node.nri.removed(container)
            container.update(phase=Phase.REMOVING)
        node.container_names.free(reserve.container_name(container.record.config.metadata, container.pod.id))
    node.collector.forget(container.id)
    node.background.tidy("container_cleanup", clean_up, node, container)


def clean_up(node: Node, container: Container) -> None:
    """Undo all that was made for a container and forget it; what fails is left over (sandbox_svc.leftovers)."""
    node.ledger.undo(container.id)
    node.database.forget(container.record)
    node.model.drop_container(container)
