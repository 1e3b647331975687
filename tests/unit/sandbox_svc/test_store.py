"""Records, database, ledger and read model."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import ledger as ledgers
from sandbox_svc.ledger import Ledger
from sandbox_svc.nri_exec import end
from sandbox_svc.store import database as databases
from sandbox_svc.store.database import Database, Entry
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.messages import framed
from sandbox_svc.store.model import Model, select_containers, select_pods
from sandbox_svc.store.records import ContainerRecord, Exit, Phase, Process, SandboxRecord, ShimBinding
from sandbox_svc.undo import ONCE, TASK

POD_ID, CONTAINER_ID = "a" * 64, "b" * 64


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "sandboxes.db")
    yield made
    made.close()


def pod_record(ident: str = POD_ID, **changes: object) -> SandboxRecord:
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="web", uid="u", namespace="default"), labels={"app": "web"}
    )
    record = SandboxRecord(
        id=ident, config=config, handler="runc", requested_handler="", created_at=5, phase=Phase.PRESENT, started_at=6
    )
    return replace(record, **changes)  # type: ignore[arg-type] # the test's own fields


def container_record(ident: str = CONTAINER_ID, **changes: object) -> ContainerRecord:
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app"), labels={"tier": "front"})
    record = ContainerRecord(id=ident, sandbox_id=POD_ID, config=config, created_at=7, phase=Phase.PRESENT)
    return replace(record, **changes)  # type: ignore[arg-type] # the test's own fields


def test_records_come_back_as_they_were_written(database: Database) -> None:
    """Every field survives the database."""
    who = Process(17, 99, "boot")
    shim = ShimBinding("/s/task", who, "/s", "k8s.io", "/usr/bin/shim", "unix:///f", who, "v2", "/b", "/e")
    pod = pod_record(process=who, shim=shim, netns="/n", ips=("10.0.0.1", "fd00::1"), exit_code=3, cgroup="/x")
    container = container_record(
        process=who, groups=(1, 2), reason="Error", resources=b"\x08\x01", message="ü", image_id="sha256:1", uid=5
    )
    database.save(pod)
    database.save(container)
    assert database.load() == ([pod], [container])


def test_a_field_of_a_newer_release_is_ignored() -> None:
    """A downgrade reads what it knows."""
    record = pod_record()
    data = {**record.to_json(), "from_the_future": 1}
    assert SandboxRecord.from_json(data, record.config.SerializeToString()) == record


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of a newer format is not touched."""
    monkeypatch.setattr(databases, "VERSION", 2)
    Database(tmp_path / "x.db").close()
    monkeypatch.setattr(databases, "VERSION", 1)
    with pytest.raises(FailedPrecondition, match="format 2"):
        Database(tmp_path / "x.db")


def test_the_ledger_undoes_last_made_first_and_keeps_what_fails(database: Database) -> None:
    """Entries go in reverse order; one that fails stays, and does not keep the others from going."""
    undone: list[str] = []
    refuse = True

    def undo(entry: Entry) -> None:
        if entry.kind == "cni" and refuse:
            raise Unavailable("no plugin")
        undone.append(entry.kind)

    ledger = Ledger(database, dict.fromkeys(("directory", "netns", "cni"), undo))
    database.save(pod_record(), [Entry("directory", {}), Entry("netns", {}), Entry("cni", {"n": 1})])
    assert [str(error) for error in ledger.undo(POD_ID)] == ["no plugin"]
    assert undone == ["netns", "directory"]
    database.amend(POD_ID, "cni", {"n": 2})
    assert [entry.data for entry in database.entries(POD_ID)] == [{"n": 2}]
    refuse = False
    assert ledger.undo(POD_ID, only=("netns",)) == []
    assert database.owners() == {POD_ID}
    assert ledger.undo(POD_ID, only=("cni",)) == []
    assert database.owners() == set()


@pytest.mark.parametrize("fails", [False, True])
def test_two_threads_undo_an_entry_one_after_the_other(database: Database, fails: bool) -> None:
    """What one thread undoes the other does not undo again; what it could not undo the other tries."""
    begun, go = threading.Event(), threading.Event()
    undone: list[str] = []

    def undo(entry: Entry) -> None:
        undone.append(entry.kind)
        begun.set()
        assert go.wait(60)
        if fails and len(undone) == 1:
            raise Unavailable("no plugin")

    ledger = Ledger(database, {"exec_plugins": undo, "directory": lambda entry: None})
    database.save(pod_record(), [Entry("directory", {}), Entry("exec_plugins", {})])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ledger.undo, POD_ID)
        assert begun.wait(60)
        second = pool.submit(ledger.undo, POD_ID, only=("exec_plugins",))
        time.sleep(0.05)  # so that it comes while the first is at it; if it comes later, the same must hold
        go.set()
        assert ([str(error) for error in first.result(60)], second.result(60)) == (["no plugin"] * fails, [])

    assert len(undone) == 1 + fails
    assert database.owners() == set()


def test_an_undoing_that_is_stuck_is_not_waited_for_without_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread gives up an entry at which another is stuck, undoes the rest, and leaves that one to the next try."""
    begun, go = threading.Event(), threading.Event()
    undone: list[str] = []

    def hang(entry: Entry) -> None:
        begun.set()
        assert go.wait(60)

    monkeypatch.setattr(ledgers, "PATIENCE", 0.05)
    ledger = Ledger(database, {"cni": hang, "directory": lambda entry: undone.append(entry.kind)})
    database.save(pod_record(), [Entry("directory", {}), Entry("cni", {})])
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(ledger.undo, POD_ID, only=("cni",))
        assert begun.wait(60)
        (error,) = ledger.undo(POD_ID)
        left = [entry.kind for entry in database.entries(POD_ID)]
        go.set()
        assert stuck.result(60) == []

    assert isinstance(error, DeadlineExceeded)
    assert (undone, left) == (["directory"], ["cni"])
    assert database.owners() == set()


def test_what_plugins_were_told_is_recorded_before_the_rest_is_undone(database: Database) -> None:
    """A service that is killed while it deletes a task does not tell exec plugins of the container's end again."""
    told: list[str] = []

    def killed(entry: Entry) -> None:
        raise SystemExit

    ledger = Ledger(database, {"task": killed, end.KIND: lambda entry: told.append(entry.kind)}, ONCE)
    database.save(pod_record(), [Entry("task", {}), Entry(end.KIND, {})])
    with pytest.raises(SystemExit):
        ledger.undo(POD_ID, only=TASK)

    assert [entry.kind for entry in database.entries(POD_ID)] == ["task"]
    assert told == [end.KIND]


def test_a_record_and_its_intents_are_one_transaction(database: Database) -> None:
    """An intent that cannot be written takes the record back with it."""
    with pytest.raises(TypeError):
        database.save(pod_record(), [Entry("netns", {}), Entry("cni", {"x": object()})])
    assert database.load() == ([], [])
    assert database.entries(POD_ID) == []


@pytest.fixture
def model(database: Database) -> Model:
    made = Model()
    pod = Pod(pod_record(), database)
    made.add_pod(pod)
    made.add_container(Container(container_record(), pod, database))
    return made


def test_things_are_found_by_id_and_unique_prefix(model: Model, database: Database) -> None:
    """An exact id or a unique beginning finds; others are NotFound, ambiguous ones InvalidArgument."""
    assert model.pod(POD_ID) is model.pod("aaa")
    assert model.container("b").id == CONTAINER_ID
    model.add_pod(Pod(pod_record("ab" + "0" * 62), database))
    for ident, error in (("a", InvalidArgument), ("", InvalidArgument), ("zz", NotFound), ("b", NotFound)):
        with pytest.raises(error):
            model.pod(ident)


def test_what_is_being_made_or_removed_is_not_listed(model: Model, database: Database) -> None:
    """Only what is present is listed or found."""
    model.add_pod(Pod(pod_record("c" * 64, phase=Phase.CREATING), database))
    assert [pod.id for pod in model.pods()] == [POD_ID]
    with pytest.raises(NotFound, match="creating"):
        model.pod("c" * 64)
    model.container(CONTAINER_ID).update(phase=Phase.REMOVING)
    assert model.containers() == []
    assert model.keys() == {POD_ID: True, CONTAINER_ID: False, "c" * 64: False}


def test_filters_choose_by_id_state_labels_and_pod(model: Model) -> None:
    """All parts of a filter must hold."""
    pods, containers = model.pods(), model.containers()

    def count(**fields: object) -> int:
        return len(select_pods(pods, cri.PodSandboxFilter(**fields)))  # type: ignore[arg-type] # test values

    assert count() == count(id="aa") == count(label_selector={"app": "web"}) == 1
    assert count(state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY)) == 1
    assert count(state=cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY)) == count(id="b") == 0
    assert count(label_selector={"app": "web", "x": "y"}) == 0

    def of(**fields: object) -> int:
        return len(select_containers(containers, cri.ContainerFilter(**fields)))  # type: ignore[arg-type] # test values

    assert of() == of(pod_sandbox_id="aa") == of(state=cri.ContainerStateValue(state=cri.CONTAINER_CREATED)) == 1
    assert of(pod_sandbox_id="c") == of(label_selector={"tier": "back"}) == 0


def test_lists_are_joined_from_cached_items(model: Model) -> None:
    """The joined bytes are the list message, and an item is made anew only after a change."""
    container = model.container(CONTAINER_ID)
    first = container.item()
    assert container.item() is first
    container.update(started_at=9)
    listed = cri.ListContainersResponse.FromString(first + container.item())
    assert [c.state for c in listed.containers] == [cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING]
    for size in (0, 1, 127, 128, 20000, 300000):
        item = cri.Container(id="x" * size).SerializeToString()
        assert cri.ListContainersResponse.FromString(framed(item)).containers[0].id == "x" * size


def test_state_comes_from_timestamps_and_an_exit_is_recorded_once(model: Model, database: Database) -> None:
    """The first exit counts; while it is being looked for the state is UNKNOWN."""
    container = model.container(CONTAINER_ID)
    container.update(started_at=8)
    container.doubt(True)
    assert container.state == cri.CONTAINER_UNKNOWN
    container.finished(Exit(137, 10, oom=True))
    container.finished(Exit(0, 11))
    record = database.load()[1][0]
    assert (record.state, record.exit_code, record.reason) == (cri.CONTAINER_EXITED, 137, "OOMKilled")
    assert record.finished_at == 10


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Exit(0, 1), "Completed"),
        (Exit(1, 1), "Error"),
        (Exit(137, 1, oom=True), "OOMKilled"),
        (Exit(255, 1, known=False), "ContainerStatusUnknown"),
    ],
)
def test_reasons_are_those_the_kubelet_knows(model: Model, outcome: Exit, reason: str) -> None:
    """An exit's reason is one of four."""
    container = model.container(CONTAINER_ID)
    container.update(started_at=1)
    container.finished(outcome)
    assert container.record.reason == reason
