"""After our own restart, or a shim's death: what the records say is compared with what is.

Lists are served from the records at once. A process that still has its pid, start time and boot id runs, beyond
doubt; one that has not is UNKNOWN until its exit has been fetched from the shim or from disk. Pods are settled in
parallel, and whatever goes wrong with one stays with that one.
"""

import logging
import time
from concurrent.futures import Future
from dataclasses import replace

from bulkhead import metrics
from bulkhead.errors import BulkheadError, NotFound, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup, past_shim, process, reserve, trees, undo, watch
from sandbox_svc.node import Node
from sandbox_svc.rpc import remove_container, remove_pod_sandbox
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.records import Exit, Phase, ShimBinding
from sandbox_svc.task.link import Link
from sandbox_svc.task.start import fork_keeper

logger = logging.getLogger(__name__)

#: Seconds a living shim is given to take a connection before its pod is left unsettled for the next try.
CONNECT_PATIENCE = 10.0
RETRY_PERIOD = 15.0


def load(node: Node) -> None:
    """Fill the read model from disk, marking as uncertain what is not seen to run; fast, and done before serving."""
    trees.remove(node.config.state / "idmapped")
    pods, containers = node.database.load()
    for record in pods:
        pod = Pod(record, node.database)
        pod.settled.clear()
        pod.uncertain = record.ready and not process.alive(record.process)
        if record.shim is not None:
            pod.link = Link(record.shim, node.reconnector(pod))
        node.model.add_pod(pod)
        if record.phase is Phase.PRESENT:
            node.pod_names.hold(reserve.pod_name(record.config.metadata), record.id)
    known = {pod.id: pod for pod in node.model.everything()}
    for entry in containers:
        if entry.sandbox_id not in known:
            logger.error("container %s belongs to no pod we know; what was made for it is taken back", entry.id)
            node.database.forget(entry)
            continue
        container = Container(entry, known[entry.sandbox_id], node.database)
        container.uncertain = entry.state == cri.CONTAINER_RUNNING and not process.alive(entry.process)
        node.model.add_container(container)
        if entry.phase is Phase.PRESENT:
            name = reserve.container_name(entry.config.metadata, entry.sandbox_id)
            node.container_names.hold(name, entry.id)


def start(node: Node) -> "list[Future[None]]":
    """Settle every pod in the background, and take back what belongs to nobody."""
    settling = [node.background.operation(_recover, node, pod) for pod in node.model.everything()]
    known = set(node.model.keys())
    orphans = node.database.owners() - known
    for owner in orphans:
        node.background.behind("orphan", node.ledger.undo, owner)
    return settling


def _recover(node: Node, pod: Pod) -> None:
    try:
        with metrics.stage("pod_recovery"):
            if pod.record.phase is Phase.CREATING:
                logger.info("pod %s was half made when sandbox-svc ended: taken back", pod.id)
                _discard(node, pod)
            elif pod.record.phase is Phase.REMOVING:
                remove_pod_sandbox.clean_up(node, pod)
            else:
                settle(node, pod)
    except Exception:
        metrics.ERRORS.labels("recovery").inc()
        logger.exception("pod %s could not be settled", pod.id)
    finally:
        pod.settled.set()


def _discard(node: Node, pod: Pod) -> None:
    if not node.ledger.undo(pod.id):
        node.database.forget(pod.record)
        node.model.drop_pod(pod)


def settle(node: Node, pod: Pod) -> None:
    """Bring one pod's records in line with its shim, or with the lack of one."""
    with pod.operation:
        if pod.record.phase is not Phase.PRESENT:
            return  # its creation or removal, which has the shim's end before it, knows what to do
        for container in node.model.containers_of(pod):
            if container.record.phase is not Phase.PRESENT:
                remove_container.clean_up(node, container)
        link = _reach(node, pod)
        if link is None:
            return
        try:
            reported = _reported(link)
            members: list[Pod | Container] = [pod, *node.model.containers_of(pod)]
            for entity in members:
                _settle_one(node, entity, link, reported)
        except BulkheadError as error:
            # A shim that does not answer one question is not asked all the others: each would wait as long.
            logger.warning("pod %s is not settled: %s; tried again in %.0f s", pod.id, error, RETRY_PERIOD)
            node.background.behind("settle", _later, node, pod)


def _reach(node: Node, pod: Pod) -> Link | None:
    """Return the connection to a pod's shim; None where there is none to be had, after doing what that calls for."""
    while pod.link is not None and _holder_lives(pod.link.binding):
        if pod.link.binding.foreign and not process.alive(pod.link.binding.process):
            _replace_keeper(node, pod, pod.link.binding)
        if _connected(node, pod.link):
            return pod.link
        # A killed process hangs up a moment before it counts as dead, so it is looked at again.
        if process.alive(pod.link.binding.process):
            logger.warning("pod %s: its shim lives but does not answer; tried again in %.0f s", pod.id, RETRY_PERIOD)
            node.background.behind("settle", _later, node, pod)
            return None
    _shim_is_dead(node, pod)
    return None


def _holder_lives(binding: ShimBinding) -> bool:
    """Tell whether the process that has the pod's containers runs: our shim, or the foreign one behind the keeper."""
    return process.alive(binding.foreign_process if binding.foreign else binding.process)


def _replace_keeper(node: Node, pod: Pod, binding: ShimBinding) -> None:
    """Fork a keeper in the place of one that died; the foreign shim and its containers have waited."""
    renewed = replace(binding, process=fork_keeper(node, pod.id, binding))
    if pod.link is not None:
        pod.link.close()
    pod.link = Link(renewed, node.reconnector(pod))
    entry = undo.shim(renewed)
    node.database.amend(pod.id, entry.kind, entry.data)
    pod.update(shim=renewed)


def _later(node: Node, pod: Pod) -> None:
    if not node.background.stopping.wait(RETRY_PERIOD):
        settle(node, pod)


def _connected(node: Node, link: Link) -> bool:
    """Connect, for as long as the other side lives and CONNECT_PATIENCE lasts."""
    deadline = time.monotonic() + CONNECT_PATIENCE
    while True:
        try:
            link.connect()
            return True
        except Unavailable:
            if time.monotonic() > deadline or node.background.stopping.wait(0.05):
                return False
            if not process.alive(link.binding.process):
                return False


def _reported(link: Link) -> dict[str, Exit]:
    """Return the exits of init processes that our shim has kept; a foreign shim keeps none but in State."""
    if not link.ours:
        return {}
    return {e.container_id: Exit(int(e.status), e.exited_at, oom=e.oom) for e in watch.reported(link) if not e.exec_id}


def _settle_one(node: Node, entity: Pod | Container, link: Link, reported: dict[str, Exit]) -> None:
    record = entity.record
    if record.finished_at:
        node.ledger.undo(entity.id, only=("task",))
        return
    if outcome := reported.get(entity.id):
        _ended(node, entity, outcome)
        return
    try:
        outcome = link.exited(entity.id)
    except NotFound:
        if record.started_at:
            _ended(node, entity, watch.left_behind(node.bundle(entity.id)) or watch.LOST)
        else:
            node.ledger.undo(entity.id, only=("task",))
        return
    if outcome is not None:
        _ended(node, entity, replace(outcome, oom=watch.was_oom(entity, link)))
        return
    if record.started_at == 0 and not _adopt(node, entity, link):
        return
    entity.doubt(False)
    node.watcher.park(entity, link)


def _ended(node: Node, entity: Pod | Container, outcome: Exit) -> None:
    """Record an exit, also of a container that was started while nobody could write that down."""
    if entity.record.started_at == 0:
        entity.update(started_at=entity.record.created_at)
    node.watcher.finish(entity, outcome)


def _adopt(node: Node, entity: Pod | Container, link: Link) -> bool:
    """Take over a container whose StartContainer we did not live to answer, or take back one not started yet."""
    state = link.state(entity.id)
    found = process.identify(state.pid) if state is not None else None
    if state is None or found is None or state.status != link.RUNNING:
        node.ledger.undo(entity.id, only=("task",))
        return False
    entity.update(started_at=process.started_at(found), process=found)
    return True


def _shim_is_dead(node: Node, pod: Pod) -> None:
    """Kill what a dead shim has left running, and record the exits: from disk where it wrote them, else 137."""
    members: list[Pod | Container] = [*node.model.containers_of(pod), pod]
    for entity in members:
        record = entity.record
        if record.finished_at or record.started_at == 0:
            node.ledger.undo(entity.id, only=("task",))
            continue
        lived = process.alive(record.process)
        if record.cgroup and not cgroup.kill(record.cgroup):
            logger.error("%s: processes of cgroup %s survive SIGKILL", entity.id, record.cgroup)
        node.watcher.finish(entity, past_shim.outcome(node.bundle(entity.id), lived=lived))
    if pod.link is not None:
        pod.link.close()
