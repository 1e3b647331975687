"""A shim for a pod: forked by the zygote for runc and crun, started by its own binary for every other runtime."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bulkhead import metrics
from sandbox_svc import undo
from sandbox_svc.runtimes import Resolved
from sandbox_svc.store.entities import Pod
from sandbox_svc.task.link import Link

if TYPE_CHECKING:
    from sandbox_svc.node import Node


def start_shim(node: "Node", pod: Pod, runtime: Resolved, place: Path) -> Link:
    """Start the shim of a pod, written ahead in the ledger, and return the connection to it."""
    with metrics.stage("shim_start"):
        planned = node.zygote.binding(pod.id)
        node.database.intend(pod.id, [undo.shim(planned)])
        binding = replace(planned, process=node.zygote.fork(pod.id))
        entry = undo.shim(binding)
        node.database.amend(pod.id, entry.kind, entry.data)
        link = Link(binding, node.reconnector(pod))
        link.connect()
        return link
