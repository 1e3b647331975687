"""StartContainer: the task is created in the pod's shim and started; a container is started once."""

import logging
import time

import grpc

from bulkhead import metrics
from bulkhead.errors import FailedPrecondition, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle, cgroup_moves, limits, process, undo, usermap
from sandbox_svc.node import Node
from sandbox_svc.nri_exec import between
from sandbox_svc.store.entities import Container
from sandbox_svc.task import stdio
from sandbox_svc.task.link import Link
from sandbox_svc.task.start import start_again

logger = logging.getLogger(__name__)

#: What the kubelet shows for a container whose process never came to be (containerd and CRI-O use the same).
START_FAILED = 128


def start_container(
    node: Node, request: cri.StartContainerRequest, context: grpc.ServicerContext
) -> cri.StartContainerResponse:
    """Start a created container; one that cannot be started ends with reason StartError and the error as message."""
    container = node.model.container(request.container_id)
    with container.operation:
        container.require_present()
        if container.state != cri.CONTAINER_CREATED:
            name = cri.ContainerState.Name(container.state)
            raise FailedPrecondition(f"container {container.id} is in state {name}, expected CONTAINER_CREATED")
        container.pod.require_ready()
        link = container.pod.link
        if link is None:
            raise FailedPrecondition(f"the shim of pod {container.pod.id} is gone")
        try:
            with cgroup_moves.readiness.kept():
                _start(node, container, link)
        except Exception as error:
            logger.warning("container %s could not be started: %s", container.id, error)
            node.ledger.undo(container.id, only=undo.TASK)
            now = time.time_ns()
            container.update(
                started_at=now, finished_at=now, exit_code=START_FAILED, reason="StartError", message=str(error)[:4096]
            )
            node.nri.stopped(container)
            raise
        try:
            node.watcher.park(container, link)
        except Unavailable:
            node.settle(node, container.pod)  # it runs, or ran: how it ended is not for us to make up
    node.collector.watch(node.container_source(container))
    return cri.StartContainerResponse()


def _start(node: Node, container: Container, link: Link) -> None:
    record, ident = container.record, container.id
    runtime = node.runtimes.resolve(container.pod.record.handler)
    place = node.bundle(ident)
    names = stdio.names(record, node.config.runtime.max_container_log_line_size)
    users = node.users(container.pod)

    def make(cgroups_path: str) -> int:
        if cgroups_path != container.record.cgroup:
            container.update(cgroup=cgroups_path)
        node.database.intend(ident, [undo.task(ident, link.binding, cgroups_path)])
        start_again(node, link, ident, place, runtime)
        mapped = usermap.mapped(bundle.read_mounts(place), users, node.id_stage(ident))
        with metrics.stage("task_create"), mapped as mounts:
            return link.create(
                ident,
                str(place),
                mounts,
                stdin=names.stdin,
                stdout=names.stdout,
                stderr=names.stderr,
                terminal=record.config.tty,
                options=runtime.options(users.root if users else None),
            )

    changed = container.limits_changed
    creation = between.Creation(node, container, make)
    creation.create(record.cgroup)
    pid = creation.ask()
    with node.nri.operation():
        node.nri.starting(container, pid)
        # Taken before: the process may have ended by the time that Start is answered.
        now = time.time_ns()
        with metrics.stage("task_start"):
            pid = link.start(ident)
        container.update(started_at=now, process=process.identify(pid))
        node.nri.started(container)
    limits.catch_up(container, place, changed)
