"""Pods and containers in memory: a record, its lock, and the message that lists repeat.

A record changes in one place only (`update`), which writes it to disk before anybody can read it from memory.
"""

import enum
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Generic, TypeVar

from bulkhead.errors import FailedPrecondition, NotFound
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.store import messages
from sandbox_svc.store.database import Database, Entry
from sandbox_svc.store.records import ContainerRecord, Exit, Phase, SandboxRecord
from sandbox_svc.task.link import Link

R = TypeVar("R", SandboxRecord, ContainerRecord)


class Told(enum.Enum):
    """What NRI plugins, whoever was there, have been told last of a pod or container."""

    NOTHING = enum.auto()
    MADE = enum.auto()
    STOPPED = enum.auto()
    REMOVED = enum.auto()


class Entity(Generic[R]):
    """What pods and containers share: a record, a condition to wait for its change, and one operation at a time."""

    def __init__(self, record: R, database: Database) -> None:
        self.record: R = record
        self._database = database
        self._condition = threading.Condition()
        self._item: bytes | None = None
        #: Held by what creates, starts, stops or removes this thing.
        self.operation = threading.RLock()
        #: Set while the process is known to be dead and its exit status is not yet known.
        self.uncertain = False
        #: The parked Wait call of its process.
        self.waiter: Future[Any] | None = None
        #: Held while plugins are told of a stop or a removal, so that each is told once.
        self.telling = threading.RLock()
        self.told = Told.NOTHING
        #: Told of every change, with the record before and after, under the condition: it must be quick.
        self.observe: Callable[[Any, R, R], None] = lambda entity, old, new: None

    @property
    def id(self) -> str:
        """The CRI id: 64 hex digits."""
        return self.record.id

    def update(self, intents: tuple[Entry, ...] = (), **changes: Any) -> R:
        """Write the record with these changes to disk, then show it, and wake who waits for it."""
        with self._condition:
            record = replace(self.record, **changes)
            self._database.save(record, intents)
            old, self.record = self.record, record
            self._item = None
            self._condition.notify_all()
            self.observe(self, old, record)
            return record

    def require_present(self) -> None:
        """Raise NotFound for what has been removed while the caller waited for its turn."""
        if self.record.phase is not Phase.PRESENT:
            raise NotFound(f"{type(self).__name__.lower()} {self.id} is {self.record.phase}")

    def doubt(self, uncertain: bool) -> None:
        """Say whether the state is unknown at present."""
        with self._condition:
            self.uncertain, self._item = uncertain, None
            self._condition.notify_all()

    def wait_for(self, predicate: Callable[[R], bool], timeout: float) -> bool:
        """Wait until the predicate holds for the record; False after `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: predicate(self.record), max(0.0, timeout))

    @property
    def condition(self) -> threading.Condition:
        """The condition that `update` notifies."""
        return self._condition

    def item(self) -> bytes:
        """Return the serialised element of a list response, made once for each change."""
        with self._condition:
            if self._item is None:
                self._item = messages.framed(self._message().SerializeToString())
            return self._item

    def _message(self) -> Any:
        raise NotImplementedError


class Pod(Entity[SandboxRecord]):
    """A pod, the connection to its shim, and its containers."""

    def __init__(self, record: SandboxRecord, database: Database) -> None:
        super().__init__(record, database)
        self.link: Link | None = None
        self.containers: dict[str, Container] = {}
        #: Held while the shim of a stopped pod is ended, behind the answer, so that a removal need not wait for that.
        #: Taken after `operation` where both are.
        self.retirement = threading.RLock()
        #: Set by StopPodSandbox: from then on nothing new begins in the pod.
        self.stopping = False
        #: Set once a recovered pod has been compared with the kernel; always set for a pod of this process's making.
        self.settled = threading.Event()
        self.settled.set()
        #: When settling is due that has not begun, and when it last began (time.monotonic); under `condition`.
        self.settling_due: float | None = None
        self.settling_began = float("-inf")

    @property
    def state(self) -> "cri.PodSandboxState":
        """READY while the pause process is not known to have ended."""
        return cri.SANDBOX_READY if self.record.ready and not self.uncertain else cri.SANDBOX_NOTREADY

    def _message(self) -> cri.PodSandbox:
        return messages.pod_item(self.record, self.state)

    def require_ready(self) -> None:
        """Raise FailedPrecondition unless things may begin in this pod."""
        if self.state != cri.SANDBOX_READY or self.stopping:
            raise FailedPrecondition(f"pod sandbox {self.id} is {'being stopped' if self.stopping else 'not ready'}")

    def finished(self, outcome: Exit) -> None:
        """Record the end of the pause process, once."""
        with self._condition:
            if self.record.finished_at == 0:
                self.update(finished_at=outcome.at or time.time_ns(), exit_code=outcome.status)
            self.doubt(False)


class Container(Entity[ContainerRecord]):
    """A container and who is waiting for it to stop."""

    def __init__(self, record: ContainerRecord, pod: Pod, database: Database) -> None:
        super().__init__(record, database)
        self.pod = pod
        #: When SIGKILL is due (time.monotonic), by the shortest grace asked for; None while nobody stops it.
        self.kill_at: float | None = None
        self.stoppers = 0
        #: Held while limits change (sandbox_svc.limits), and how often they have.
        self.limits = threading.Lock()
        self.limits_changed = 0

    @property
    def state(self) -> "cri.ContainerState":
        """The state as CRI has it, UNKNOWN while the exit status is being looked for."""
        if self.uncertain and self.record.finished_at == 0:
            return cri.CONTAINER_UNKNOWN
        return self.record.state

    def _message(self) -> cri.Container:
        return messages.container_item(self.record, self.state)

    def finished(self, outcome: Exit) -> None:
        """Record the end of the container's process, once."""
        with self._condition:
            if self.record.finished_at == 0 and self.record.phase is not Phase.CREATING:
                self.update(
                    finished_at=outcome.at or time.time_ns(),
                    exit_code=outcome.status,
                    reason=_reason(outcome),
                    message="" if outcome.known else "the exit status was lost with the shim that held it",
                )
            self.doubt(False)


def _reason(outcome: Exit) -> str:
    """Return the reason as the kubelet shows it; OOMKilled is demanded by the CRI."""
    if not outcome.known:
        return "ContainerStatusUnknown"
    if outcome.oom:
        return "OOMKilled"
    return "Completed" if outcome.status == 0 else "Error"
