"""Ending what a shim that is dead or silent still has, and exits that no parked Wait will tell of.

Settling a pod finds them, too, but it waits for operations like the one that calls these functions.
"""

import time
from pathlib import Path

from bulkhead.errors import NotFound
from sandbox_svc import cgroup, process, watch
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.records import Exit
from sandbox_svc.task.link import Link

#: What a container that SIGKILL ended exits with: 128 + 9.
KILLED = 137
#: Seconds in which the parked Wait, or the settling that has begun already, may tell of the exit first.
PATIENCE = 2.0


def end(entity: Pod | Container, bundle: Path, timeout: float) -> bool:
    """Kill everything in the entity's group and record its exit; False if something survives for timeout seconds."""
    lived = process.alive(entity.record.process)
    if not cgroup.kill(entity.record.cgroup, timeout=timeout):
        return False
    if not _told(entity):
        entity.finished(outcome(bundle, lived=lived))
    return True


def learn(entity: Pod | Container, link: Link, bundle: Path) -> None:
    """Record the exit of a process of which the shim says that it has ended."""
    if _told(entity):
        return
    try:
        found = link.exited(entity.id)
    except NotFound:
        found = outcome(bundle, lived=False)
    if found is not None:
        entity.finished(found)


def outcome(bundle: Path, *, lived: bool) -> Exit:
    """Return how a process without a shim ended: as the shim wrote to disk, else killed if it lived, else lost."""
    return watch.left_behind(bundle) or (Exit(KILLED, time.time_ns()) if lived else watch.LOST)


def _told(entity: Pod | Container) -> bool:
    return entity.wait_for(lambda record: record.finished_at > 0, PATIENCE)
