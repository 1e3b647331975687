"""StopContainer: the stop signal, then, when the shortest grace anybody asked for is over, SIGKILL."""

import signal
import time

import grpc

from bulkhead import metrics
from bulkhead.errors import BulkheadError, Cancelled, DeadlineExceeded, NotFound, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import past_shim, process, validate
from sandbox_svc.node import Node
from sandbox_svc.stop_signal import stop_signal
from sandbox_svc.store.entities import Container
from sandbox_svc.task.link import Link

#: Seconds from SIGKILL to the recorded exit, where the process is not stuck in the kernel.
KILL_TIMEOUT = 60.0
#: Seconds between two looks at whether the caller is still there.
_LOOK = 1.0
#: Seconds for a shim to thaw a container.
_THAW_TIMEOUT = 5.0


def stop_container(
    node: Node, request: cri.StopContainerRequest, context: grpc.ServicerContext
) -> cri.StopContainerResponse:
    """Stop a container.

    "This call is idempotent, and must not return an error if the container has already been stopped" (CRI), nor
    if there is none by that id.
    """
    validate.grace(request.timeout)
    try:
        container = node.model.container(request.container_id)
    except NotFound:
        return cri.StopContainerResponse()
    if container.state == cri.CONTAINER_CREATED:
        with container.operation:
            pass  # a StartContainer on its way would start it behind our back
    with metrics.stage("container_stop"):
        stop(node, container, float(request.timeout), context)
    node.nri.stopped(container)
    return cri.StopContainerResponse()


def stop(node: Node, container: Container, grace: float, context: grpc.ServicerContext | None = None) -> None:
    """Stop a running container within grace seconds; another caller with less grace shortens the wait of this one."""
    if not _running(container):
        return
    with container.condition:
        due = time.monotonic() + grace
        first = container.stoppers == 0
        container.stoppers += 1
        if container.kill_at is None or due < container.kill_at:
            container.kill_at = due
        container.condition.notify_all()
    try:
        node.checkpoints.give_way(container.id, lambda: _link(container).resume(container.id, _THAW_TIMEOUT))
        if first and grace > 0:
            ask(container, stop_signal(container.record))
        _await_grace(container, context)
        if _running(container):
            kill(node, container)
            _await_exit(container, context)
    finally:
        with container.condition:
            container.stoppers -= 1
            if container.stoppers == 0:
                container.kill_at = None


def ask(container: Container, number: int) -> None:
    """Send the stop signal: through the shim, or past it if it does not answer; what has ended needs none."""
    try:
        _link(container).kill(container.id, number)
    except BulkheadError:
        if not process.kill(container.record.process, number) and process.alive(container.record.process):
            raise


def kill(node: Node, container: Container) -> None:
    """Send SIGKILL to all processes: through the shim, or past it if it does not answer."""
    bundle = node.bundle(container.id)
    try:
        link = _link(container)
        if not link.kill(container.id, signal.SIGKILL, all=_shares_pids(container)):
            past_shim.learn(container, link, bundle)
    except BulkheadError:
        if not past_shim.end(container, bundle, timeout=1.0):
            raise


def _link(container: Container) -> Link:
    if container.pod.link is None:
        raise Unavailable(f"the shim of pod {container.pod.id} is gone")
    return container.pod.link


def _shares_pids(container: Container) -> bool:
    """Without a PID namespace of its own a container's other processes outlive its first one."""
    return container.record.config.linux.security_context.namespace_options.pid != cri.CONTAINER


def _running(container: Container) -> bool:
    return container.state in (cri.CONTAINER_RUNNING, cri.CONTAINER_UNKNOWN)


def _await_grace(container: Container, context: grpc.ServicerContext | None) -> None:
    while True:
        with container.condition:
            if not _running(container) or container.kill_at is None:
                return
            left = container.kill_at - time.monotonic()
            if left <= 0:
                return
            container.condition.wait(min(left, _LOOK))
        if context is not None and not context.is_active():
            raise Cancelled(f"StopContainer of {container.id}: the caller went away")


def _await_exit(container: Container, context: grpc.ServicerContext | None) -> None:
    deadline = time.monotonic() + KILL_TIMEOUT
    while not container.wait_for(lambda record: record.finished_at > 0, _LOOK):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"container {container.id} has not exited {KILL_TIMEOUT:.0f} s after SIGKILL")
        if context is not None and not context.is_active():
            raise Cancelled(f"StopContainer of {container.id}: the caller went away")
