"""StopPodSandbox: everything in the pod killed and, side by side with that, its network given back."""

import signal

import grpc

from bulkhead import metrics
from bulkhead.errors import BulkheadError, FailedPrecondition, NotFound
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import past_shim, undo
from sandbox_svc.node import Node
from sandbox_svc.rpc.stop_container import stop
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.records import Phase

#: Seconds from SIGKILL to the exit of the pause process.
KILL_TIMEOUT = 30.0


def stop_pod_sandbox(
    node: Node, request: cri.StopPodSandboxRequest, context: grpc.ServicerContext
) -> cri.StopPodSandboxResponse:
    """Stop a pod and return when its addresses are free.

    "This call is idempotent, and must not return an error if all relevant resources have already been reclaimed" (CRI).
    """
    try:
        pod = node.model.pod(request.pod_sandbox_id)
    except NotFound:
        return cri.StopPodSandboxResponse()
    with metrics.stage("pod_stop"):
        stop_pod(node, pod)
    return cri.StopPodSandboxResponse()


def stop_pod(node: Node, pod: Pod) -> None:
    """Kill what runs in a pod and reclaim its network at the same time; the first failure is raised at the end."""
    with pod.operation:
        pod.stopping = True
        detaching = node.background.part(node.ledger.undo, pod.id, only=("cni",))
        parts = [
            node.background.part(_stop_container, node, container)
            for container in node.model.containers_of(pod)
            if container.record.phase is Phase.PRESENT
        ]
        parts.append(node.background.part(_kill_pause, node, pod))
        failures = [error for part in parts if (error := part.exception()) is not None]
        _tell(node, pod)
        failures += detaching.result()
        # The namespace goes when the network is reclaimed: plugins want to look into it.
        if not detaching.result():
            failures += node.ledger.undo(pod.id, only=("netns", "mount"))
        if failures:
            raise _as_ours(failures[0], pod)
    node.background.tidy("shim_shutdown", retire_shim, node, pod)


def _tell(node: Node, pod: Pod) -> None:
    """Tell NRI plugins of the pod's stop, after those of its containers that ran; one that never did is removed."""
    with node.nri.teardown():
        for container in node.model.containers_of(pod):
            if container.record.finished_at:
                node.nri.stopped(container)
        node.nri.pod_stopped(pod)


def _as_ours(error: BaseException, pod: Pod) -> BaseException:
    if isinstance(error, BulkheadError):
        return error
    return FailedPrecondition(f"stopping pod {pod.id}: {type(error).__name__}: {error}")


def _stop_container(node: Node, container: Container) -> None:
    """Kill a container; one whose StartContainer is on its way is waited for first."""
    with container.operation:
        stop(node, container, 0.0)


def _kill_pause(node: Node, pod: Pod) -> None:
    if not pod.record.ready and not pod.uncertain:
        return
    bundle = node.bundle(pod.id)
    try:
        if pod.link is None:
            raise FailedPrecondition("no shim")
        if not pod.link.kill(pod.id, signal.SIGKILL):
            past_shim.learn(pod, pod.link, bundle)
    except BulkheadError:
        if not past_shim.end(pod, bundle, timeout=5.0):
            raise
    if not pod.wait_for(lambda record: record.finished_at > 0, KILL_TIMEOUT):
        raise FailedPrecondition(f"the pause process of pod {pod.id} is alive {KILL_TIMEOUT:.0f} s after SIGKILL")


def retire_shim(node: Node, pod: Pod) -> None:
    """End the shim of a stopped pod: its tasks are deleted first, each with its container's ledger.

    One that does not answer is asked about one task, not about all, and ended by force; then they go without it.
    """
    with pod.retirement:
        if pod.record.ready:
            return
        members = [*(container.id for container in node.model.containers_of(pod)), pod.id]
        any(node.ledger.undo(ident, only=undo.TASK) for ident in members)
        if not node.ledger.undo(pod.id, only=("shim",)):
            pod.link = None
        for ident in members:
            node.ledger.undo(ident, only=undo.TASK)
