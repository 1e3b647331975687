"""Exits: one Wait parked in the shim for each process, its answer recorded, and the tidying up that follows.

A Wait that ends because the connection broke decides nothing: the pod is then settled anew (sandbox_svc.recovery).
"""

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from bulkhead import metrics
from bulkhead.errors import BulkheadError, NotFound, Unavailable
from bulkhead.proto import shim_pb2
from sandbox_svc import cgroup, undo
from sandbox_svc.background import Background
from sandbox_svc.ledger import Ledger
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.records import Exit
from sandbox_svc.task.link import Link, exit_of

logger = logging.getLogger(__name__)

#: What stands for a status that nobody can tell any more.
LOST = Exit(255, 0, known=False)


class Watcher:
    """Parks the Waits and takes their answers."""

    def __init__(
        self,
        ledger: Ledger,
        background: Background,
        ended: Callable[[Pod | Container], None] = lambda entity: None,
    ) -> None:
        """Take what is used, and who is told of every recorded end; it must be quick."""
        self._ledger = ledger
        self._background = background
        self._tell = ended

    def park(self, entity: Pod | Container, link: Link) -> None:
        """Wait for a process in the shim; Unavailable if the shim cannot be reached."""
        waiter = link.wait(entity.id)
        entity.waiter = waiter
        waiter.add_done_callback(lambda done: self._background.tidy("exit", self._ended, entity, link, done))

    def _ended(self, entity: Pod | Container, link: Link, done: "Future[Any]") -> None:
        if entity.waiter is not done:
            return  # another Wait has taken over since
        try:
            answer = done.result()
            outcome = exit_of(answer.exit_status, answer.exited_at)
        except Unavailable:
            link.report_loss()
            return
        except NotFound:
            outcome = LOST
        if outcome.known and outcome.status:
            outcome = replace(outcome, oom=was_oom(entity, link))
        self.finish(entity, outcome)

    def finish(self, entity: Pod | Container, outcome: Exit) -> None:
        """Record an exit, then have the shim drop the container (the ledger's task entry) behind the record."""
        if entity.record.finished_at == 0:
            logger.info("%s %s exited with %d", type(entity).__name__.lower(), entity.id, outcome.status)
        entity.finished(outcome)
        self._tell(entity)
        with metrics.stage("task_delete"):
            self._ledger.undo(entity.id, only=undo.TASK)


def was_oom(entity: Pod | Container, link: Link) -> bool:
    """Tell whether the kernel killed for memory: our shim watched for it, a foreign one's cgroup still counts it."""
    if link.ours:
        try:
            return any(e.oom for e in reported(link) if e.container_id == entity.id and not e.exec_id)
        except BulkheadError as error:
            logger.warning("%s: whether memory ran out is unknown: %s", entity.id, error)
            return False
    return cgroup.oom_kills(entity.record.cgroup) > 0


def reported(link: Link) -> list[shim_pb2.Exit]:
    """Return the exits that our shim remembers."""
    answer = link.ours_call("Exits", shim_pb2.ExitsRequest(), shim_pb2.ExitsResponse, 5.0)
    return list(answer.exits)


def left_behind(bundle: Path) -> Exit | None:
    """Return the exit that a shim wrote to disk before it died itself (exit.json of the bundle)."""
    try:
        data = json.loads((bundle / "exit.json").read_text())
        return Exit(int(data["status"]), int(data["exited_at"]), bool(data.get("oom", False)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
