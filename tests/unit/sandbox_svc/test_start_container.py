"""StartContainer where the shim fails at the worst moment: no container runs unseen, no exit code is made up."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from bulkhead.config.model import Config
from bulkhead.errors import DeadlineExceeded, NotFound, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle, cgroup, undo
from sandbox_svc.rpc import start_container
from sandbox_svc.store.database import Entry
from sandbox_svc.store.records import Exit, Phase
from sandbox_svc.undo import Undoer


@pytest.fixture
def starting(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The world's container, created and not started, and what its start needs."""
    world.container.update(started_at=0, process=None)
    world.link.create = lambda *_, **__: 1
    world.link.start = lambda ident: 1
    monkeypatch.setattr(bundle, "read_mounts", lambda place: [])
    world.settled = []
    node = world.node
    node.config = Config()
    node.runtimes = SimpleNamespace(resolve=lambda handler: SimpleNamespace(options=lambda users: None))
    node.users = lambda pod: None
    node.id_stage = lambda ident: world.tmp
    node.collector = SimpleNamespace(watch=lambda source: None)
    node.container_source = lambda container: None
    node.settle = lambda node, pod: world.settled.append(pod.id)
    return world


def start(world: Any) -> None:
    context: Any = None
    start_container.start_container(world.node, cri.StartContainerRequest(container_id=world.container.id), context)


def test_a_connection_lost_after_the_start_is_no_failure_to_start(starting: Any) -> None:
    """The container runs; its exit, found by settling, is not written over with StartError."""

    def lose(ident: str) -> Any:
        starting.container.finished(Exit(3, 77))
        raise Unavailable("the connection ended")

    starting.link.wait = lose
    start(starting)
    assert starting.settled == [starting.pod.id]
    record = starting.container.record
    assert (record.exit_code, record.reason, record.phase) == (3, "Error", Phase.PRESENT)
    assert starting.undone == []


def test_a_start_that_fails_says_so_and_is_taken_back(starting: Any) -> None:
    """The kubelet reads reason and message; the task is gone before the next attempt begins."""

    def fail(ident: str) -> Any:
        raise DeadlineExceeded("Start: no answer")

    starting.link.start = fail
    with pytest.raises(DeadlineExceeded):
        start(starting)
    record = starting.container.record
    assert (record.exit_code, record.reason, record.message) == (128, "StartError", "Start: no answer")
    assert {("c", "task")} == set(starting.undone)


def test_what_was_removed_meanwhile_is_not_started(starting: Any) -> None:
    """A StartContainer that waited for a RemoveContainer finds nothing to start."""
    starting.link.create = None
    with ThreadPoolExecutor(1) as pool:
        with starting.container.operation:
            outcome = pool.submit(start, starting)
            time.sleep(0.05)
            starting.container.update(phase=Phase.REMOVING)
        assert isinstance(outcome.exception(60), NotFound)
    assert starting.container.record.started_at == 0


def test_a_silent_shim_saves_no_process(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is killed by its group; the entry stays until the shim has been told or ended."""
    killed: list[str] = []

    def kill(path: str, timeout: float = 10.0) -> bool:
        killed.append(path)
        return True

    monkeypatch.setattr(cgroup, "kill", kill)
    world.link.refuse = DeadlineExceeded("Kill: no answer")
    images: Any = None
    undoer = Undoer(Config(), world.node.database, world.node.model, {}, images)
    entry: Entry = undo.task(world.container.id, world.link.binding, "/pods/c")
    with pytest.raises(DeadlineExceeded):
        undoer.task(entry)
    assert killed == ["/pods/c"]
