"""Events of pods and containers: which changes make them, their order, and what a watcher that comes back gets."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead.errors import Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import happenings as module
from sandbox_svc.happenings import DROPPED, Happening, Happenings, Watcher, kinds
from sandbox_svc.store.database import Database
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.model import Model
from sandbox_svc.store.records import ContainerRecord, Exit, Phase, SandboxRecord

CREATED, STOPPED = cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STOPPED_EVENT
STARTED, DELETED = cri.CONTAINER_STARTED_EVENT, cri.CONTAINER_DELETED_EVENT
POD, CONTAINER = "a" * 64, "b" * 64


@pytest.fixture
def seen() -> Happenings:
    return Happenings()


@pytest.fixture
def pod(tmp_path: Path, seen: Happenings) -> Iterator[Pod]:
    """A pod that is being made, with a container that is being made."""
    database, model = Database(tmp_path / "sandboxes.db"), Model(seen.observe)
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", uid="u", namespace="default"))
    made = Pod(SandboxRecord(id=POD, config=config, handler="runc", requested_handler="", created_at=1), database)
    model.add_pod(made)
    inside = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app"))
    model.add_container(
        Container(ContainerRecord(id=CONTAINER, sandbox_id=POD, config=inside, created_at=2), made, database)
    )
    yield made
    database.close()


def taken(seen: Happenings, count: int) -> list[Happening]:
    """Open a stream, take that many events, and break it off."""
    stream = seen.watch(Watcher(seen))
    found = [next(stream) for _ in range(count)]
    stream.close()  # type: ignore[attr-defined] # a generator
    return found


def live(pod: Pod) -> Container:
    """Bring both to life."""
    pod.update(phase=Phase.PRESENT, started_at=3)
    container = pod.containers[CONTAINER]
    container.update(phase=Phase.PRESENT)
    container.update(started_at=4)
    return container


def test_a_life_makes_its_events_in_order(pod: Pod, seen: Happenings) -> None:
    """Creation, start, stop and removal of a pod and its container are events with the statuses of that moment."""
    container = live(pod)
    container.finished(Exit(3, 5))
    container.update(phase=Phase.REMOVING)
    pod.finished(Exit(0, 6))
    pod.update(phase=Phase.REMOVING)

    messages = [event.message() for event in taken(seen, 8)]

    assert [(m.container_id, m.container_event_type) for m in messages] == [
        (POD, CREATED),
        (POD, STARTED),
        (CONTAINER, CREATED),
        (CONTAINER, STARTED),
        (CONTAINER, STOPPED),
        (CONTAINER, DELETED),
        (POD, STOPPED),
        (POD, DELETED),
    ]
    assert [m.pod_sandbox_status.id for m in messages] == [POD] * 8
    assert [[s.state for s in m.containers_statuses] for m in messages] == [
        [],
        [],
        [cri.CONTAINER_CREATED],
        [cri.CONTAINER_RUNNING],
        [cri.CONTAINER_EXITED],
        [],
        [],
        [],
    ]
    assert messages[4].containers_statuses[0].exit_code == 3
    assert messages[6].pod_sandbox_status.state == cri.SANDBOX_NOTREADY
    times = [m.created_at for m in messages]
    assert times == sorted(set(times))


def test_changes_that_are_no_events(pod: Pod) -> None:
    """Half-made things, updates of limits and what follows a removal are nobody's business."""
    record = pod.containers[CONTAINER].record
    present = replace(record, phase=Phase.PRESENT, started_at=4)
    assert kinds(record, replace(record, image_id="x")) == []
    assert kinds(record, replace(record, phase=Phase.REMOVING)) == []
    assert kinds(present, replace(present, resources=b"x")) == []
    removing = replace(present, phase=Phase.REMOVING)
    assert kinds(removing, replace(removing, finished_at=9)) == []


def test_a_container_that_could_not_be_started_only_stops(pod: Pod) -> None:
    """StartError sets both times at once; there was no start."""
    record = replace(pod.containers[CONTAINER].record, phase=Phase.PRESENT)
    assert kinds(record, replace(record, started_at=4, finished_at=4)) == [STOPPED]


def test_a_pod_that_ended_while_it_was_made_has_all_its_events(pod: Pod) -> None:
    """A pause process that dies before the record is written was created, started and stopped."""
    record = replace(pod.record, finished_at=4)
    assert kinds(record, replace(record, phase=Phase.PRESENT, started_at=3)) == [CREATED, STARTED, STOPPED]


def test_a_new_stream_goes_on_where_the_broken_one_left_off(
    pod: Pod, seen: Happenings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that nobody received are replayed, those received are not, those of the last second are."""
    monkeypatch.setattr(module, "IN_FLIGHT", -1.0)
    container = live(pod)
    assert [event.kind for event in taken(seen, 2)] == [CREATED, STARTED]
    assert [event.subject for event in taken(seen, 2)] == [CONTAINER, CONTAINER]
    monkeypatch.setattr(module, "IN_FLIGHT", 60.0)
    container.finished(Exit(0, 5))
    assert [event.kind for event in taken(seen, 1)] == [STOPPED]
    assert len(taken(seen, 5)) == 5


def test_a_second_watcher_starts_now(pod: Pod, seen: Happenings) -> None:
    """Where no stream broke, a new one gets what comes, not what was."""
    first = seen.watch(Watcher(seen))
    container = live(pod)
    assert next(first).kind == CREATED
    watcher = Watcher(seen)
    found: list[Happening] = []
    thread = threading.Thread(target=lambda: found.extend(seen.watch(watcher)))
    thread.start()
    deadline = time.monotonic() + 60
    while module.WATCHERS._value.get() < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    container.finished(Exit(0, 5))
    while not found and time.monotonic() < deadline:
        time.sleep(0.01)
    watcher.close()
    thread.join(60)
    assert [event.kind for event in found] == [STOPPED]
    assert not thread.is_alive()


def test_a_place_is_kept_for_a_while_only(pod: Pod, seen: Happenings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that ended long ago is not continued."""
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    live(pod)
    watcher = Watcher(seen)
    watcher.close()
    assert list(seen.watch(watcher)) == []


def test_what_a_slow_watcher_misses_is_counted(pod: Pod) -> None:
    """The sequence is bounded; what fell out of it is counted and the rest is delivered."""
    seen = Happenings(kept=2)
    pod.observe = seen.observe
    pod.containers[CONTAINER].observe = seen.observe
    before = DROPPED._value.get()
    live(pod)
    assert [event.subject for event in taken(seen, 2)] == [CONTAINER, CONTAINER]
    assert DROPPED._value.get() - before == 2


def test_stopping_ends_the_streams(seen: Happenings) -> None:
    """A stream of a process that stops ends with an error that makes the client come again."""
    seen.stop()
    with pytest.raises(Unavailable, match="stopping"):
        next(seen.watch(Watcher(seen)))
