"""What happens to pods and containers, kept in order for those who watch (GetContainerEvents).

An event is made where a record changes, so none can be forgotten and all are in the order of the records. It keeps the
records as they were; the message is built when it is sent. Each watcher has its place in one bounded sequence: one that
falls behind its beginning has lost what was dropped, which is counted. A watcher that comes back cannot say what it saw
last (the request is empty), so a new stream goes on where the stream that broke longest ago left off.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from bulkhead.errors import Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.store import messages
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.records import ContainerRecord, Phase, SandboxRecord

DROPPED = Counter(
    "bulkhead_container_events_dropped_total", "Events that a watcher missed because it read too slowly or was away."
)
WATCHERS = Gauge("bulkhead_container_event_watchers", "Open GetContainerEvents streams.")

#: Events that are kept at most, each the records of one pod.
KEPT = 4096
#: Seconds for which a broken stream's place is kept for the one that follows it.
PATIENCE = 300.0
#: Seconds before a stream's end whose events the next stream gets again: they may have been lost on the way.
IN_FLIGHT = 1.0
#: Seconds after which a stream without events looks whether its client is still there.
LOOK = 30.0


@dataclass(frozen=True)
class Happening:
    """One event: the records of the pod and of its containers at that moment."""

    #: Nanoseconds since the epoch, greater than the event's before.
    at: int
    #: Seconds of time.monotonic.
    clock: float
    subject: str
    kind: "cri.ContainerEventType"
    pod: SandboxRecord
    pod_state: "cri.PodSandboxState"
    containers: "tuple[tuple[ContainerRecord, cri.ContainerState], ...]"

    def message(self) -> cri.ContainerEventResponse:
        """Return the event as the CRI has it, a removed pod's status included: the kubelet ignores events without."""
        return cri.ContainerEventResponse(
            container_id=self.subject,
            container_event_type=self.kind,
            created_at=self.at,
            pod_sandbox_status=messages.pod_status(self.pod, self.pod_state),
            containers_statuses=[messages.container_status(record, state) for record, state in self.containers],
        )


def kinds(old: SandboxRecord | ContainerRecord, new: SandboxRecord | ContainerRecord) -> "list[cri.ContainerEventType]":
    """Return the events that a change of a record stands for, in their order."""
    if old.phase is Phase.REMOVING or (old.phase is Phase.CREATING and new.phase is not Phase.PRESENT):
        return []
    shown = old.phase is Phase.PRESENT
    found: list[cri.ContainerEventType] = [] if shown else [cri.CONTAINER_CREATED_EVENT]
    started = bool(new.started_at and not (shown and old.started_at))
    ended = bool(new.finished_at and not (shown and old.finished_at))
    # A container that could not be started starts and ends in one change: it never ran.
    if started and not (shown and ended):
        found.append(cri.CONTAINER_STARTED_EVENT)
    if ended:
        found.append(cri.CONTAINER_STOPPED_EVENT)
    if new.phase is Phase.REMOVING:
        found.append(cri.CONTAINER_DELETED_EVENT)
    return found


class Happenings:
    """The sequence of events and the places of its watchers."""

    def __init__(self, kept: int = KEPT) -> None:
        self._condition = threading.Condition()
        self._events: deque[Happening] = deque(maxlen=kept)
        #: The number of the event after the newest; the first event has number 0.
        self._next = 0
        #: The time of the newest event.
        self._at = 0
        self._stopped = False
        # A kubelet's stream ended with the process before this one: what the recovery finds out is for it.
        self._left: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def observe(
        self, entity: Pod | Container, old: SandboxRecord | ContainerRecord, new: SandboxRecord | ContainerRecord
    ) -> None:
        """Take note of a change of a record; called under the lock of what changed, so it only copies."""
        changes = kinds(old, new)
        if not changes:
            return
        pod = entity if isinstance(entity, Pod) else entity.pod
        members = tuple(
            (member.record, member.state)
            for member in list(pod.containers.values())
            if member.record.phase is Phase.PRESENT
        )
        with self._condition:
            for kind in changes:
                self._at = max(time.time_ns(), self._at + 1)
                self._events.append(
                    Happening(self._at, time.monotonic(), entity.id, kind, pod.record, pod.state, members)
                )
                self._next += 1
            self._condition.notify_all()

    def watch(self, watcher: "Watcher") -> Iterator[Happening]:
        """Yield events from where a broken stream left off, and new ones as they come, until the watcher is closed."""
        with self._condition:
            place = self._resume()
        WATCHERS.inc()
        try:
            while (found := self._take(watcher, place)) is not None:
                event, place = found
                yield event
        finally:
            WATCHERS.dec()
            with self._condition:
                self._left.append((time.monotonic(), self._doubtful(place)))

    def wake(self) -> None:
        """Have every watcher look whether it was closed."""
        with self._condition:
            self._condition.notify_all()

    def stop(self) -> None:
        """End every stream with Unavailable, since the process stops."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def _resume(self) -> int:
        now = time.monotonic()
        while self._left:
            since, place = self._left.popleft()
            if now - since <= PATIENCE:
                return place
        return self._next

    def _take(self, watcher: "Watcher", place: int) -> tuple[Happening, int] | None:
        """Wait for the event at a place; return it and the place after it, or None for a watcher that is closed."""
        with self._condition:
            while not watcher.closed:
                if self._stopped:
                    raise Unavailable("sandbox-svc is stopping")
                if place < self._next:
                    oldest = self._next - len(self._events)
                    if place < oldest:
                        DROPPED.inc(oldest - place)
                        place = oldest
                    return self._events[place - oldest], place + 1
                self._condition.wait(LOOK)
        return None

    def _doubtful(self, place: int) -> int:
        """Return the place of the first event that a stream which ended now may not have delivered."""
        oldest, since = self._next - len(self._events), time.monotonic() - IN_FLIGHT
        while place > oldest and self._events[place - 1 - oldest].clock >= since:
            place -= 1
        return place


class Watcher:
    """One open stream."""

    def __init__(self, happenings: Happenings) -> None:
        self._happenings = happenings
        self.closed = False

    def close(self) -> None:
        """End the stream; its thread comes back soon after."""
        self.closed = True
        self._happenings.wake()
