"""The moments at which exec plugins are run: between create and start, after an update, around a checkpoint."""

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from bulkhead.errors import BulkheadError
from bulkhead.files import write_atomic
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle
from sandbox_svc.node import Node
from sandbox_svc.nri_exec import end
from sandbox_svc.nri_exec.messages import Subject
from sandbox_svc.store.entities import Container, Pod

logger = logging.getLogger(__name__)


class Creation:
    """A task that is created, asked about, and then started by the caller.

    `make` writes the task into the ledger, creates it in the cgroup that it is given and returns its process. It is
    called again, after the task was taken back, where a plugin wants another cgroup. The ledger undoes what fails.
    """

    def __init__(self, node: Node, entity: Pod | Container, make: Callable[[str], int]) -> None:
        self._node, self._entity, self._make = node, entity, make
        self._pid = -1

    def create(self, cgroups_path: str) -> None:
        """Create the task; not with plugins' files that cannot be read."""
        self._plugins = self._node.exec_plugins.plugins()
        self._pid = self._make(cgroups_path)

    def ask(self) -> int:
        """Run the plugins, which may refuse the start, and return the process that may be started."""
        node, entity = self._node, self._entity
        if not self._plugins:
            return self._pid
        pod = _pod(entity)
        node.database.intend(entity.id, [end.entry(entity.id, pod.id, pod.record.config.labels)])
        subject = _subject(entity, self._pid, node.bundle(entity.id))
        node.exec_plugins.create(self._plugins, subject, self._move)
        return self._pid

    def _move(self, cgroups_path: str) -> int:
        """Create the task anew in another cgroup."""
        if errors := self._node.ledger.undo(self._entity.id, only=("task",)):
            raise errors[0]
        place = self._node.bundle(self._entity.id)
        # A plugin of the current protocol may change a container's limits, which are in the same file, at any time.
        with self._entity.limits if isinstance(self._entity, Container) else contextlib.nullcontext():
            spec = bundle.read(place)
            spec["linux"]["cgroupsPath"] = cgroups_path
            write_atomic(place / "config.json", json.dumps(spec, separators=(",", ":")).encode())
        self._pid = self._make(cgroups_path)
        return self._pid


def updated(node: Node, container: Container) -> None:
    """Tell plugins that a running container's limits have changed."""
    plugins = node.exec_plugins.plugins()
    process = container.record.process
    if plugins and process is not None and container.state == cri.CONTAINER_RUNNING:
        node.exec_plugins.tell(plugins, "update", _subject(container, process.pid, node.bundle(container.id)))


def frozen(node: Node, container: Container, state: str) -> None:
    """Tell plugins that a container has been frozen ("pause") or thawed ("resume"); what they say is only logged."""
    try:
        plugins = node.exec_plugins.plugins()
        if plugins and container.record.process is not None:
            subject = _subject(container, container.record.process.pid, node.bundle(container.id))
            node.exec_plugins.tell(plugins, state, subject)
    except (BulkheadError, OSError) as error:
        logger.warning("container %s: exec plugins are not told of its %s: %s", container.id, state, error)


def _subject(entity: Pod | Container, pid: int, place: Path) -> Subject:
    pod = _pod(entity)
    return Subject(entity.id, pod.id, pid, bundle.read(place), dict(pod.record.config.labels))


def _pod(entity: Pod | Container) -> Pod:
    return entity if isinstance(entity, Pod) else entity.pod
