"""RemovePodSandbox: stop the pod if need be, remove its containers by force, forget it; the disk follows."""

import grpc

from bulkhead.errors import NotFound
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import reserve
from sandbox_svc.node import Node
from sandbox_svc.rpc import remove_container
from sandbox_svc.rpc.stop_pod_sandbox import stop_pod
from sandbox_svc.store.entities import Pod
from sandbox_svc.store.records import Phase


def remove_pod_sandbox(
    node: Node, request: cri.RemovePodSandboxRequest, context: grpc.ServicerContext
) -> cri.RemovePodSandboxResponse:
    """Remove a pod.

    "This call is idempotent, and must not return an error if the sandbox has already been removed" (CRI).
    """
    try:
        pod = node.model.pod(request.pod_sandbox_id)
    except NotFound:
        return cri.RemovePodSandboxResponse()
    with pod.operation:
        if pod.record.phase is Phase.PRESENT:
            stop_pod(node, pod)
            for container in node.model.containers_of(pod):
                remove_container.remove(node, container)
            with node.nri.teardown():
                node.nri.pod_removed(pod)
                pod.update(phase=Phase.REMOVING)
            node.pod_names.free(reserve.pod_name(pod.record.config.metadata))
    node.collector.forget(pod.id)
    node.background.tidy("pod_cleanup", clean_up, node, pod)
    return cri.RemovePodSandboxResponse()


def clean_up(node: Node, pod: Pod) -> None:
    """Undo all that was made for a pod and its containers, and forget them; what fails is left over."""
    with pod.operation, pod.retirement:
        for container in node.model.containers_of(pod):
            remove_container.clean_up(node, container)
        node.ledger.undo(pod.id)
        if pod.link is not None:
            pod.link.close()
        node.database.forget(pod.record)
        node.model.drop_pod(pod)
