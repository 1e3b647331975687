"""A shim for a pod: forked by the zygote for runc and crun, started by its own binary for every other runtime."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bulkhead import metrics, ttrpc
from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd import task_pb2
from bulkhead.ttrpc_frames import NAMESPACE_KEY
from sandbox_svc import process, undo
from sandbox_svc.runtimes import Resolved
from sandbox_svc.store.entities import Pod
from sandbox_svc.store.records import Process, ShimBinding
from sandbox_svc.task import foreign
from sandbox_svc.task.link import Link

if TYPE_CHECKING:
    from sandbox_svc.node import Node


def start_shim(node: "Node", pod: Pod, runtime: Resolved, place: Path) -> Link:
    """Start the shim of a pod, written ahead in the ledger, and return the connection to it."""
    with metrics.stage("shim_start"):
        planned = node.zygote.binding(pod.id)
        if runtime.ours:
            return _connected(node, pod, planned)
        binary = foreign.binary_of(runtime.handler.runtime_type, runtime.handler.runtime_path)
        planned = replace(planned, binary=binary, bundle=str(place), events=str(node.events_socket))
        node.database.intend(pod.id, [undo.shim(planned)])
        with _log_held(place) as log:
            started = _start_binary(planned, pod.id, place, runtime)
            planned = replace(
                planned,
                foreign_address=started.address,
                foreign_service=started.service,
                foreign_process=_who(started, pod.id, planned.namespace),
            )
            link = _connected(node, pod, planned)
        link.hold(pod.id, log)
        return link


def start_again(node: "Node", link: Link, ident: str, place: Path, runtime: Resolved) -> None:
    """Announce a further container of a pod to a foreign shim of the second task service, which wants `start` for each.

    It answers the address of the pod's shim, by the sandbox id in the bundle's annotations.
    """
    binding = link.binding
    if not binding.foreign or binding.foreign_service != "v2":
        return
    with _log_held(place) as log:
        started = _start_binary(binding, ident, place, runtime)
        if started.address != binding.foreign_address:
            raise FailedPrecondition(
                f"{binding.binary} started a shim of its own for container {ident}, expected the pod's"
            )
    link.hold(ident, log)


def fork_keeper(node: "Node", ident: str, binding: ShimBinding) -> Process:
    """Have a keeper forked beside a foreign shim; one that follows a dead keeper finds its containers by itself."""
    return node.zygote.fork(
        ident,
        "keeper",
        address=binding.foreign_address.removeprefix("unix://"),
        service=binding.foreign_service,
    )


@contextlib.contextmanager
def _log_held(place: Path) -> Iterator[int]:
    """Open the log FIFO of a foreign shim's bundle; it is closed again if the block fails."""
    log = foreign.held_log(place)
    try:
        yield log
    except BaseException:
        os.close(log)
        raise


def _connected(node: "Node", pod: Pod, planned: ShimBinding) -> Link:
    if not planned.foreign:
        node.database.intend(pod.id, [undo.shim(planned)])
    forked = fork_keeper(node, pod.id, planned) if planned.foreign else node.zygote.fork(pod.id)
    binding = replace(planned, process=forked)
    entry = undo.shim(binding)
    node.database.amend(pod.id, entry.kind, entry.data)
    link = Link(binding, node.reconnector(pod))
    link.connect()
    return link


def _start_binary(binding: ShimBinding, ident: str, place: Path, runtime: Resolved) -> foreign.Started:
    return foreign.start(
        binding.binary,
        ident,
        place,
        namespace=binding.namespace,
        events=Path(binding.events),
        options=runtime.options(),
    )


def _who(started: foreign.Started, ident: str, namespace: str) -> Process | None:
    """Ask a foreign shim for its pid; one that says it only with a container is known once it has one."""
    client = ttrpc.Client(started.address.removeprefix("unix://"), metadata={NAMESPACE_KEY: namespace})
    try:
        answer = client.call(
            f"containerd.task.{started.service}.Task",
            "Connect",
            task_pb2.ConnectRequest(id=ident),
            task_pb2.ConnectResponse,
            10.0,
        )
        return process.identify(answer.shim_pid)
    finally:
        client.close()
