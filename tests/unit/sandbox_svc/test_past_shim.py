"""Stopping where the shim is dead, silent or forgetful: it ends within seconds, with the right exit."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bulkhead.errors import DeadlineExceeded, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import past_shim, process
from sandbox_svc.ledger import Ledger
from sandbox_svc.rpc import remove_pod_sandbox, stop_container, stop_pod_sandbox
from sandbox_svc.store.database import Entry
from sandbox_svc.store.records import Exit, Phase, Process


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else tells of exits here."""
    monkeypatch.setattr(past_shim, "PATIENCE", 0.05)


@pytest.mark.parametrize("silence", [Unavailable("it is dead"), DeadlineExceeded("it hangs")])
def test_a_pod_is_stopped_past_its_shim(world: Any, silence: Exception) -> None:
    """Settling waits for StopPodSandbox, which therefore must not wait for settling, but record the exits."""
    world.link.refuse = silence
    world.node.ledger = Ledger(world.node.database, dict.fromkeys(("task", "cni"), lambda entry: None))
    began = time.monotonic()
    stop_pod_sandbox.stop_pod(world.node, world.pod)
    assert time.monotonic() - began < 5
    record = world.container.record
    assert (record.exit_code, record.reason) == (137, "Error")
    assert world.pod.state == cri.SANDBOX_NOTREADY


def test_the_stop_signal_reaches_the_process_past_a_silent_shim(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung shim does not cost the container its grace."""
    world.link.refuse = DeadlineExceeded("it hangs")

    def heed(target: Process | None, number: int = 9) -> bool:
        assert (target, number) == (world.container.record.process, 15)
        world.container.finished(Exit(0, 5))
        return True

    monkeypatch.setattr(process, "kill", heed)
    stop_container.stop(world.node, world.container, 30)
    assert world.container.record.exit_code == 0


def test_a_process_that_ended_with_its_shim_is_stopped(world: Any) -> None:
    """Before anybody has recorded the end of either, a stop with grace is no error: there is nothing to signal."""
    world.link.refuse = Unavailable("it is dead")
    world.container.update(process=Process(1, 2, "an earlier boot"))
    stop_container.stop(world.node, world.container, 0.05)
    assert world.container.state == cri.CONTAINER_EXITED


def test_an_exit_nobody_told_of_is_asked_for(world: Any) -> None:
    """The process ended while nobody waited: the shim says so, and how."""
    world.container.doubt(True)
    world.link.kill = lambda ident, number, **_: False
    world.link.exits[world.container.id] = Exit(3, 77)
    stop_container.stop(world.node, world.container, 0)
    assert (world.container.record.exit_code, world.container.record.finished_at) == (3, 77)


def test_an_exit_left_on_disk_is_not_called_a_kill(world: Any) -> None:
    """What the shim wrote before it died is the exit, whoever finds it."""
    world.container.update(process=replace(world.container.record.process, start_time=1))
    world.link.refuse = Unavailable("it is dead")
    (world.tmp / "c").mkdir()
    (world.tmp / "c" / "exit.json").write_text(json.dumps({"status": 4, "exited_at": 9}))
    stop_container.stop(world.node, world.container, 0)
    assert (world.container.record.exit_code, world.container.record.finished_at) == (4, 9)


def test_what_survives_is_said(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that SIGKILL does not end makes StopContainer fail, and no exit is made up."""
    monkeypatch.setattr("sandbox_svc.cgroup.kill", lambda path, timeout=10.0: False)
    world.link.refuse = Unavailable("it is dead")
    with pytest.raises(Unavailable):
        stop_container.stop(world.node, world.container, 0)
    assert world.container.record.finished_at == 0


def test_a_silent_shim_is_asked_about_one_task_only(world: Any) -> None:
    """Each question costs as long as the first; after its end by force the tasks go without it."""
    done: list[tuple[str, str]] = []
    alive = True

    def task(entry: Entry) -> None:
        done.append((entry.owner[:1], "task"))
        if alive:
            raise DeadlineExceeded("it hangs")

    def shim(entry: Entry) -> None:
        nonlocal alive
        alive = False
        done.append((entry.owner[:1], "shim"))

    world.node.database.intend(world.pod.id, [Entry("shim", {})])
    world.node.ledger = Ledger(world.node.database, {"task": task, "shim": shim})
    world.pod.finished(Exit(137, 1))
    stop_pod_sandbox.retire_shim(world.node, world.pod)
    assert done == [("c", "task"), ("p", "shim"), ("c", "task"), ("p", "task")]
    assert world.pod.link is None
    assert world.node.database.owners() == set()


def test_a_removal_does_not_wait_for_the_shims_end(world: Any) -> None:
    """The shim leaves behind the answer to StopPodSandbox; what is taken back of the pod then waits for that."""
    node, ended = world.node, Exit(137, 1)
    node.pod_names = node.container_names = SimpleNamespace(free=lambda name: None)
    node.collector = SimpleNamespace(forget=lambda ident: None)
    world.container.finished(ended)
    world.pod.finished(ended)
    request: Any = cri.RemovePodSandboxRequest(pod_sandbox_id=world.pod.id)
    with ThreadPoolExecutor(1) as pool:
        with world.pod.retirement:
            pool.submit(remove_pod_sandbox.remove_pod_sandbox, node, request, None).result(60)  # type: ignore[arg-type]
            assert world.pod.record.phase is Phase.REMOVING
            time.sleep(0.05)
            assert world.pod in node.model.everything()
        deadline = time.monotonic() + 60
        while world.pod in node.model.everything() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert world.pod not in node.model.everything()


def test_stopping_waits_for_a_start_on_its_way(world: Any) -> None:
    """A container that is being started is not "already stopped": it would run on after StopContainer's answer."""
    world.container.update(started_at=0)
    world.node.model.container = lambda ident: world.container
    world.link.on_kill = lambda ident, number: world.container.finished(Exit(137, 1))
    request, context = cri.StopContainerRequest(container_id="c"), SimpleNamespace(is_active=lambda: True)
    with ThreadPoolExecutor(1) as pool:
        with world.container.operation:
            stopping = pool.submit(stop_container.stop_container, world.node, request, context)  # type: ignore[arg-type]
            time.sleep(0.05)
            assert not stopping.done()
            world.container.update(started_at=5)
        stopping.result(60)
    assert world.container.state == cri.CONTAINER_EXITED
