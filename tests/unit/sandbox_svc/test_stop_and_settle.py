"""Stopping containers and settling recovered pods, against a shim that records what it is asked."""

import errno
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bulkhead.config.model import Config
from bulkhead.errors import Cancelled, FailedPrecondition, Unavailable
from bulkhead.proto import shim_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup, linux, recovery, trees, undo
from sandbox_svc.background import Background
from sandbox_svc.cni import AddResult, Attachment
from sandbox_svc.ledger import Ledger
from sandbox_svc.rpc import stop_container
from sandbox_svc.store.database import Database
from sandbox_svc.store.model import Model
from sandbox_svc.store.records import Exit, SandboxRecord
from sandbox_svc.undo import Undoer
from support.one_pod import process_of_ours


def exit_on(world: Any, number: int, status: int) -> None:
    """Have the container end when it gets that signal."""

    def end(ident: str, got: int) -> None:
        if got == number:
            world.container.finished(Exit(status, time.time_ns()))

    world.link.on_kill = end


def test_a_container_that_obeys_is_not_killed(world: Any) -> None:
    """The stop signal is enough."""
    exit_on(world, 15, 0)
    stop_container.stop(world.node, world.container, 30)
    assert world.link.calls == [("kill", "c", 15)]
    assert world.container.kill_at is None
    stop_container.stop(world.node, world.container, 30)
    assert len(world.link.calls) == 1


def test_grace_zero_kills_at_once(world: Any) -> None:
    """No stop signal is sent where there is no time to heed it."""
    exit_on(world, 9, 137)
    stop_container.stop(world.node, world.container, 0)
    assert world.link.calls == [("kill", "c", 9)]


def test_the_shortest_grace_counts_for_all(world: Any) -> None:
    """A later and shorter grace ends the wait of the first caller, too; the signal is sent once."""
    exit_on(world, 9, 137)
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stop_container.stop, world.node, world.container, 60)
        time.sleep(0.05)
        second = pool.submit(stop_container.stop, world.node, world.container, 0.1)
        first.result(60)
        second.result(60)
    assert time.monotonic() - began < 50
    assert world.link.calls[0] == ("kill", "c", 15)
    assert world.link.calls.count(("kill", "c", 15)) == 1
    assert world.container.kill_at is None


def test_a_caller_that_goes_away_is_not_waited_for(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait ends with the call."""
    monkeypatch.setattr(stop_container, "_LOOK", 0.01)
    context: Any = SimpleNamespace(is_active=lambda: False)
    with pytest.raises(Cancelled):
        stop_container.stop(world.node, world.container, 60, context)


def test_a_dead_shim_is_gone_past(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL goes to the cgroup when the shim does not answer."""
    killed: list[str] = []

    def kill(path: str, timeout: float = 10.0) -> bool:
        killed.append(path)
        world.container.finished(Exit(137, 1))
        return True

    monkeypatch.setattr(cgroup, "kill", kill)
    world.link.refuse = Unavailable("gone")
    stop_container.stop(world.node, world.container, 0)
    assert len(killed) == 1


def test_settling_parks_a_wait_for_what_runs(world: Any) -> None:
    """A running pod stays as it is and is waited for again."""
    world.container.doubt(True)
    recovery.settle(world.node, world.pod)
    assert world.link.calls == [("Exits",), ("wait", "p"), ("wait", "c")]
    assert world.container.state == cri.CONTAINER_RUNNING


def test_settling_takes_the_exit_the_shim_kept(world: Any) -> None:
    """Status and the memory flag come from the shim, and the task is deleted after."""
    world.link.reported = [shim_pb2.Exit(container_id="c" * 64, status=137, exited_at=77, oom=True)]
    recovery.settle(world.node, world.pod)
    record = world.container.record
    assert (record.exit_code, record.finished_at, record.reason) == (137, 77, "OOMKilled")
    assert world.undone == [("c", "task")]


def test_settling_finds_the_exit_left_on_disk(world: Any) -> None:
    """A container its shim has forgotten ended as the bundle says; without that its status is lost."""
    world.link.unknown = {"c" * 64}
    (world.tmp / "c").mkdir()
    (world.tmp / "c" / "exit.json").write_text('{"pid": 5, "status": 3, "exited_at": 9, "oom": false}')
    recovery.settle(world.node, world.pod)
    assert (world.container.record.exit_code, world.container.record.reason) == (3, "Error")


def test_a_lost_status_is_named_so(world: Any) -> None:
    """255 and ContainerStatusUnknown stand for what nobody knows."""
    world.link.unknown = {"c" * 64}
    recovery.settle(world.node, world.pod)
    assert (world.container.record.exit_code, world.container.record.reason) == (255, "ContainerStatusUnknown")


def test_a_container_started_unheard_is_adopted(world: Any) -> None:
    """Started by a service that did not live to write it down: it runs, and is taken over."""
    world.container.update(started_at=0, process=None)
    recovery.settle(world.node, world.pod)
    assert world.container.state == cri.CONTAINER_RUNNING
    assert world.container.record.process == process_of_ours()


def test_a_dead_shim_ends_the_pod(world: Any) -> None:
    """What ran is killed and recorded as 137, the pod is not ready."""
    dead = replace(process_of_ours(), start_time=1)
    world.link.binding = replace(world.link.binding, process=dead)
    recovery.settle(world.node, world.pod)
    assert (world.container.record.exit_code, world.container.record.reason) == (137, "Error")
    assert world.pod.state == cri.SANDBOX_NOTREADY
    assert world.link.calls == [("close",)]


def test_a_hung_shim_leaves_its_pod_for_later(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is concluded from silence."""
    monkeypatch.setattr(recovery, "CONNECT_PATIENCE", 0.1)
    monkeypatch.setattr(recovery, "RETRY_PERIOD", 60)
    world.link.refuse = Unavailable("silence")
    recovery.settle(world.node, world.pod)
    assert world.container.state == cri.CONTAINER_RUNNING
    assert world.undone == []


def test_an_exit_is_recorded_and_its_task_deleted(world: Any) -> None:
    """The answer of a parked Wait ends the container; one of a Wait that was replaced does not."""
    waiter: Future[Any] = Future()
    world.link.wait = lambda ident: waiter
    world.node.watcher.park(world.container, world.link)
    world.container.waiter = Future()
    waiter.set_result(SimpleNamespace(exit_status=1, exited_at=SimpleNamespace(seconds=5, nanos=7)))
    time.sleep(0.05)
    assert world.container.record.finished_at == 0
    world.node.watcher.park(world.container, world.link)  # the future is done already
    assert world.container.wait_for(lambda record: record.finished_at > 0, 5)
    assert world.container.record.finished_at == 5_000_000_007
    deadline = time.monotonic() + 60
    while ("c", "task") not in world.undone and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ("c", "task") in world.undone


class FakeNetwork:
    """A CNI manager that fails as often as it is told."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def delete(self, attachment: Attachment, result: AddResult | None) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise Unavailable("plugin is gone")


def undoer(tmp_path: Path, database: Database, network: FakeNetwork) -> Undoer:
    config = Config(root=tmp_path / "root", state=tmp_path / "state")
    images: Any = None
    networks: Any = {"": network}
    return Undoer(config, database, Model(), networks, images)


def test_a_network_that_cannot_be_given_back_is_written_off(tmp_path: Path) -> None:
    """DEL is tried a few times over StopPodSandbox calls; then the pod may go, and the log says what is lost."""
    database = Database(tmp_path / "db")
    record = SandboxRecord("p" * 64, cri.PodSandboxConfig(), "runc", "", 1)
    database.save(record, [undo.network("runc", Attachment("p" * 64, "/n"), AddResult())])
    ledger = Ledger(database, undoer(tmp_path, database, FakeNetwork(100)).by_kind())
    failed = 0
    while ledger.undo("p" * 64, only=("cni",)):
        failed += 1
        assert failed < 20
    assert failed == undo.NETWORK_ATTEMPTS - 1
    assert database.entries("p" * 64) == []
    database.close()


def test_only_our_own_directories_are_removed(tmp_path: Path) -> None:
    """Whatever the ledger says, nothing outside root and state is touched."""
    database = Database(tmp_path / "db")
    removers = undoer(tmp_path, database, FakeNetwork(0)).by_kind()
    other = tmp_path / "other"
    other.mkdir()
    for path in (other, tmp_path / "root", tmp_path / "state" / ".." / "other", Path("/")):
        with pytest.raises(FailedPrecondition):
            removers["directory"](undo.directory(path))
    ours = tmp_path / "root" / "x"
    ours.mkdir(parents=True)
    removers["directory"](undo.directory(ours))
    removers["directory"](undo.directory(ours))
    assert not ours.exists()
    database.close()


def test_a_mounted_directory_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that cannot be got rid of protects what is below it."""

    def mounted(*_: object, **__: object) -> int:
        raise OSError(errno.EXDEV, "it is a mount point")

    monkeypatch.setattr(linux, "openat2", mounted)
    monkeypatch.setattr(trees, "mounts_below", lambda path: [f"{path}/rootfs"])
    monkeypatch.setattr(trees, "unmount", lambda path: None)
    (tmp_path / "b").mkdir()
    with pytest.raises(FailedPrecondition, match="still mounted"):
        trees.remove(tmp_path / "b")
    assert (tmp_path / "b").exists()


def test_work_keeps_the_correlation_id() -> None:
    """A log line of background work carries the id of the call that began it."""
    from bulkhead import log

    background, seen = Background(), threading.Event()
    token = log.correlation.set("abc")
    try:
        assert background.operation(log.correlation.get).result(60) == "abc"
        assert background.part(log.correlation.get).result(60) == "abc"
        background.behind("test", lambda: seen.set() if log.correlation.get() == "abc" else None)
        assert seen.wait(30)
    finally:
        log.correlation.reset(token)
        background.stop()
