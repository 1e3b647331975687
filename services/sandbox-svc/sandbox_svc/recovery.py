"""After our own restart, or a shim's death: what the records say is compared with what is.

Lists are served from the records at once. A process that still has its pid, start time and boot id runs, beyond
doubt; one that has not is UNKNOWN until its exit has been fetched from the shim or from disk. Pods are settled in
parallel, and whatever goes wrong with one stays with that one.
"""

import contextlib
import logging
import time
from concurrent.futures import Future
from dataclasses import replace

from bulkhead import metrics
from bulkhead.errors import BulkheadError, NotFound, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup, leftovers, past_shim, process, reserve, trees, undo, watch
from sandbox_svc.node import Node
from sandbox_svc.rpc import checkpoint_container
from sandbox_svc.store.entities import Container, Pod, Told
from sandbox_svc.store.records import Exit, Phase, ShimBinding
from sandbox_svc.task.link import Link
from sandbox_svc.task.start import fork_keeper

logger = logging.getLogger(__name__)

#: Seconds a living shim is given to take a connection before its pod is left unsettled for the next try.
CONNECT_PATIENCE = 10.0
RETRY_PERIOD = 15.0
#: Seconds from the beginning of one settling of a pod to that of the next.
SPACING = 0.25
_HALF = {Phase.CREATING: "made", Phase.REMOVING: "removed"}


def load(node: Node) -> None:
    """Fill the read model from disk, marking as uncertain what is not seen to run; fast, and done before serving."""
    trees.remove(node.config.state / "idmapped")
    pods, containers = node.database.load()
    present: dict[str, Pod] = {}
    for record in pods:
        if record.phase is not Phase.PRESENT:
            logger.info("pod %s was half %s when sandbox-svc ended: taken back", record.id, _HALF[record.phase])
            node.database.forget(record)  # what was made for it is left over now
            continue
        present[record.id] = pod = Pod(record, node.database)
        pod.told = Told.MADE
        pod.settled.clear()
        pod.uncertain = record.ready and not process.alive(record.process)
        if record.shim is not None:
            pod.link = Link(record.shim, node.reconnector(pod))
        node.model.add_pod(pod)
        node.pod_names.hold(reserve.pod_name(record.config.metadata), record.id)
    for entry in containers:
        if entry.phase is not Phase.PRESENT or entry.sandbox_id not in present:
            logger.info("container %s of pod %s, half made or removed, is taken back", entry.id, entry.sandbox_id)
            node.database.forget(entry)
            continue
        container = Container(entry, present[entry.sandbox_id], node.database)
        container.told = Told.STOPPED if entry.finished_at else Told.MADE
        container.uncertain = entry.state == cri.CONTAINER_RUNNING and not process.alive(entry.process)
        node.model.add_container(container)
        node.container_names.hold(reserve.container_name(entry.config.metadata, entry.sandbox_id), entry.id)


def start(node: Node) -> "list[Future[None]]":
    """Settle every recovered pod in the background, and take back what belongs to nobody."""
    recovered = [pod for pod in node.model.everything() if not pod.settled.is_set()]
    settling = [node.background.operation(_recover, node, pod) for pod in recovered]
    node.background.behind("leftovers", leftovers.watch, node)
    return settling


def _recover(node: Node, pod: Pod) -> None:
    try:
        with metrics.stage("pod_recovery"):
            settle(node, pod)
    finally:
        pod.settled.set()


def soon(node: Node, pod: Pod, delay: float = 0.0) -> None:
    """Have a pod settled in the background after a delay in seconds; the earliest of several demands counts for all.

    A shim that takes connections only to hang up is followed once in SPACING seconds.
    """
    with pod.condition:
        due = max(time.monotonic() + delay, pod.settling_began + SPACING)
        awaited = pod.settling_due is not None
        pod.settling_due = due if pod.settling_due is None else min(due, pod.settling_due)
        pod.condition.notify_all()
    if not awaited:
        node.background.behind("settle", _when_due, node, pod)


def _when_due(node: Node, pod: Pod) -> None:
    while not node.background.stopping.is_set():
        with pod.condition:
            if pod.settling_due is None:
                return  # settled meanwhile
            left = pod.settling_due - time.monotonic()
            if left > 0:
                pod.condition.wait(min(left, 1.0))
                continue
        settle(node, pod)
        return


def settle(node: Node, pod: Pod) -> None:
    """Bring one pod's records in line with its shim, or with the lack of one; try again later if that fails."""
    with pod.condition:
        pod.settling_due, pod.settling_began = None, time.monotonic()
    with pod.operation, pod.retirement:
        if pod.record.phase is not Phase.PRESENT:
            return  # its creation or removal, which has the shim's end before it, knows what to do
        try:
            link = _reach(node, pod)
            if link is None:
                return
            reported = _reported(link)
            members: list[Pod | Container] = [pod, *node.model.containers_of(pod)]
            for entity in members:
                # One that is being created has no process yet; one that is being started is waited for.
                if entity.record.phase is Phase.PRESENT:
                    with contextlib.nullcontext() if entity.record.started_at else entity.operation:
                        _settle_one(node, entity, link, reported)
        except Exception as error:
            # A shim that does not answer one question is not asked all the others: each would wait as long.
            metrics.ERRORS.labels("settle").inc()
            expected = isinstance(error, BulkheadError)
            logger.warning(
                "pod %s is not settled: %s; tried again in %.0f s", pod.id, error, RETRY_PERIOD, exc_info=not expected
            )
            soon(node, pod, RETRY_PERIOD)


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
            soon(node, pod, RETRY_PERIOD)
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
        node.ledger.undo(entity.id, only=undo.TASK)
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
            node.ledger.undo(entity.id, only=undo.TASK)
        return
    if outcome is not None:
        _ended(node, entity, replace(outcome, oom=watch.was_oom(entity, link)))
        return
    if record.started_at == 0 and not _adopt(node, entity, link):
        return
    entity.doubt(False)
    node.watcher.park(entity, link)
    if isinstance(entity, Container):
        checkpoint_container.thaw(node, entity.id, link)


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
        node.ledger.undo(entity.id, only=undo.TASK)
        return False
    entity.update(started_at=process.started_at(found), process=found)
    return True


def _shim_is_dead(node: Node, pod: Pod) -> None:
    """Kill what a dead shim has left running, and record the exits: from disk where it wrote them, else 137."""
    members: list[Pod | Container] = [*node.model.containers_of(pod), pod]
    for entity in members:
        record = entity.record
        if record.finished_at or record.started_at == 0:
            node.ledger.undo(entity.id, only=undo.TASK)
            continue
        lived = process.alive(record.process)
        if record.cgroup and not cgroup.kill(record.cgroup):
            logger.error("%s: processes of cgroup %s survive SIGKILL", entity.id, record.cgroup)
        node.watcher.finish(entity, past_shim.outcome(node.bundle(entity.id), lived=lived))
    if pod.link is not None:
        pod.link.close()
