"""What recovery finds: half-made things, unreadable records, a rebooted machine, shims that will not settle."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bulkhead.config.model import Config
from bulkhead.errors import FailedPrecondition, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import leftovers, process, recovery, undo
from sandbox_svc.background import Background
from sandbox_svc.checkpoint.under_way import UnderWay
from sandbox_svc.cni import AddResult, Attachment
from sandbox_svc.ledger import Ledger
from sandbox_svc.reserve import Names
from sandbox_svc.rpc.remove_pod_sandbox import remove_pod_sandbox
from sandbox_svc.rpc.stop_pod_sandbox import stop_pod
from sandbox_svc.store.database import Database, Entry
from sandbox_svc.store.entities import Container
from sandbox_svc.store.model import Model
from sandbox_svc.store.records import ContainerRecord, Exit, Phase, Process, SandboxRecord, ShimBinding
from sandbox_svc.undo import Undoer
from sandbox_svc.watch import Watcher
from support.one_pod import without_plugins


def test_only_what_nobody_owns_is_left_over(world: Any) -> None:
    """Entries of things in the model stay; of the others a pod's shim outlives the containers it is asked about."""
    database = world.node.database
    for owner, kind in (("x", "shim"), ("x", "cni"), ("y", "task")):
        database.intend(owner, [Entry(kind, {})])
    done: list[str] = []
    world.node.ledger = Ledger(database, dict.fromkeys(("shim", "cni", "task"), lambda e: done.append(e.owner)))
    leftovers.sweep(world.node)
    assert done == ["y", "x", "x"]
    assert database.owners() == {world.pod.id, world.container.id}


def test_what_cannot_be_undone_is_tried_again(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image-svc that restarts leaks nothing until our own next start; a bug in one undoing keeps no other."""
    monkeypatch.setattr(leftovers, "PERIOD", 0.02)
    failures: Iterator[Exception] = iter([Unavailable("restarting"), KeyError("bug"), RecursionError()])
    undone = threading.Event()

    def snapshot(entry: Entry) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        undone.set()

    world.node.database.intend("y", [Entry("cni", {}), Entry("snapshot", {})])
    world.node.ledger = Ledger(world.node.database, {"snapshot": snapshot, "cni": lambda entry: None})
    world.node.background.behind("leftovers", leftovers.watch, world.node)
    assert undone.wait(30)


def test_settling_leaves_a_creation_alone(world: Any) -> None:
    """A container that is being made while its pod is settled is not taken for one left half made."""
    record = ContainerRecord("d" * 64, world.pod.id, cri.ContainerConfig(), 9)
    made = Container(record, world.pod, world.node.database)
    world.node.model.add_container(made)
    with made.operation:
        worker = threading.Thread(target=recovery.settle, args=(world.node, world.pod))
        worker.start()
        worker.join(60)
        assert not worker.is_alive()
    assert world.undone == []
    assert made in world.node.model.containers_of(world.pod)


def test_settling_waits_for_a_start(world: Any) -> None:
    """Between the ledger's entry and the shim's create the shim knows nothing, which is no reason to drop the entry."""
    world.container.update(started_at=0, process=None)
    world.link.unknown = {world.container.id}
    worker = threading.Thread(target=recovery.settle, args=(world.node, world.pod))
    with world.container.operation:
        worker.start()
        worker.join(0.2)
        assert world.undone == []
        world.link.unknown.clear()
    worker.join(60)
    assert world.undone == []
    assert world.container.state == cri.CONTAINER_RUNNING


def test_a_shim_that_hangs_up_again_and_again_costs_one_thread(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each settling breaks the connection, which asks for the next: once in SPACING seconds, not in a storm."""
    monkeypatch.setattr(recovery, "SPACING", 0.1)
    tries: list[float] = []

    def hang_up() -> None:
        tries.append(time.monotonic())
        for _ in range(3):
            recovery.soon(world.node, world.pod)
        raise Unavailable("the connection ended before the answer came")

    monkeypatch.setattr(recovery, "_reported", lambda link: hang_up())
    began = time.monotonic()
    recovery.soon(world.node, world.pod)
    while len(tries) < 5:
        assert time.monotonic() < began + 60
        time.sleep(0.01)
    world.node.background.stopping.set()
    assert len(tries) <= (time.monotonic() - began) / recovery.SPACING + 2


def test_a_lost_connection_does_not_wait_for_the_next_try(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dying shim may still take a connection: what then fails is tried again at once when that breaks, too."""
    monkeypatch.setattr(recovery, "RETRY_PERIOD", 60.0)
    monkeypatch.setattr(recovery, "SPACING", 0.05)
    settled = threading.Event()

    def found(link: Any) -> dict[str, Exit]:
        settled.set()
        return {}

    def reported(link: Any) -> dict[str, Exit]:
        monkeypatch.setattr(recovery, "_reported", found)
        raise Unavailable("the connection ended before the answer came")

    monkeypatch.setattr(recovery, "_reported", reported)
    recovery.settle(world.node, world.pod)
    assert not settled.wait(0.1)
    recovery.soon(world.node, world.pod)
    assert settled.wait(5)


def test_any_failure_to_settle_is_followed_by_another_try(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a zygote that is not there yet leaves no pod unsettled for ever."""
    monkeypatch.setattr(recovery, "RETRY_PERIOD", 0.02)
    monkeypatch.setattr(recovery, "SPACING", 0.01)
    failures: Iterator[Exception] = iter([sqlite3.OperationalError("disk is full"), Unavailable("no zygote")])
    settled = threading.Event()

    def reach(node: Any, pod: Any) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        settled.set()

    monkeypatch.setattr(recovery, "_reach", reach)
    recovery.settle(world.node, world.pod)
    assert settled.wait(5)


def test_a_record_that_cannot_be_read_costs_itself(tmp_path: Path) -> None:
    """One bad row keeps no other pod from being served."""
    database = Database(tmp_path / "db")
    for ident in ("a", "b", "c"):
        database.save(SandboxRecord(ident, cri.PodSandboxConfig(), "runc", "", 1))
    with sqlite3.connect(tmp_path / "db") as other:
        other.execute("UPDATE sandboxes SET data = '{\"phase\": \"unheard of\"}' WHERE id = 'a'")
        other.execute("UPDATE sandboxes SET config = x'ff' WHERE id = 'b'")
    other.close()
    assert [pod.id for pod in database.load()[0]] == ["c"]
    database.close()


def test_nobody_else_reads_the_records(tmp_path: Path) -> None:
    """Environments of containers stand in them, in the log of SQLite too, and the directory can be entered by all."""
    old = os.umask(0o022)
    try:
        database = Database(tmp_path / "db")
        database.save(SandboxRecord("a", cri.PodSandboxConfig(), "runc", "", 1))
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(old)
        database.close()
    assert modes == dict.fromkeys(("db", "db-wal", "db-shm", "db.reserve"), 0o600)


class RecordingNetwork:
    """A CNI manager that notes which pods it gave back."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def delete(self, attachment: Attachment, result: AddResult | None) -> None:
        self.deleted.append(attachment.sandbox_id)


def node_after(tmp_path: Path, database: Database, network: RecordingNetwork, removed: list[str]) -> Any:
    """Return the parts of a service that has just started over these records."""
    background, model = Background(), Model()
    images: Any = SimpleNamespace(remove=removed.append)
    config = Config(root=tmp_path / "root", state=tmp_path / "state")
    networks: Any = {"": network}
    ledger = Ledger(database, Undoer(config, database, model, networks, images).by_kind())

    def bundles(ident: str) -> Path:
        return config.state / "bundles" / ident

    node = SimpleNamespace(
        nri=without_plugins(model, bundles, background),
        config=config,
        database=database,
        model=model,
        ledger=ledger,
        background=background,
        watcher=Watcher(ledger, background),
        pod_names=Names(),
        container_names=Names(),
        checkpoints=UnderWay(),
        collector=SimpleNamespace(forget=lambda ident: None),
        bundle=bundles,
        settle=recovery.soon,
    )
    node.reconnector = lambda pod: lambda: recovery.soon(node, pod)  # type: ignore[arg-type] # the parts used here
    return node


def test_after_a_reboot_pods_are_dead_and_can_be_taken_away(tmp_path: Path) -> None:
    """The state directory was a tmpfs and is gone, the records are not, and some pid is that of somebody else now.

    What ran is EXITED with a status nobody knows, nothing of the new boot is touched, the addresses are given back
    by the kept results, and what was half made is undone.
    """
    this_boot = process.identify(os.getpid())
    assert this_boot is not None
    before: Process = replace(this_boot, boot_id="b16b00b5-0000-4000-8000-000000000000")
    shim = ShimBinding(str(tmp_path / "state/s/1/task"), process=before, directory=str(tmp_path / "state/s/1"))
    pod_id, ran, created, half = "p" * 64, "c" * 64, "d" * 64, "e" * 64
    path = tmp_path / "sandboxes.db"
    database = Database(path)
    database.save(
        SandboxRecord(
            pod_id, cri.PodSandboxConfig(), "runc", "", 1, Phase.PRESENT, 2, process=before, shim=shim,
            netns=str(tmp_path / "state/netns/p"), ips=("10.0.0.1",), cgroup=f"/bulkhead-test/{pod_id}",
        ),
        [
            undo.directory(tmp_path / "root/sandboxes" / pod_id),
            undo.pinned_netns(tmp_path / "state/netns/p"),
            undo.network("runc", Attachment(pod_id, str(tmp_path / "state/netns/p")), AddResult()),
            undo.mount(tmp_path / "state/shm/p"),
            undo.snapshot(pod_id),
            undo.shim(shim),
            undo.task(pod_id, shim, f"/bulkhead-test/{pod_id}"),
        ],
    )  # fmt: skip
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="ran"))
    running = ContainerRecord(ran, pod_id, config, 3, Phase.PRESENT, 4, process=before, cgroup=f"/bulkhead-test/{ran}")
    database.save(running, [undo.snapshot(ran), undo.task(ran, shim, f"/bulkhead-test/{ran}")])
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="created"))
    database.save(ContainerRecord(created, pod_id, config, 5, Phase.PRESENT), [undo.snapshot(created)])
    database.save(ContainerRecord(half, pod_id, config, 6), [undo.snapshot(half)])
    (tmp_path / "root/sandboxes" / pod_id).mkdir(parents=True)
    database.close()

    network, removed = RecordingNetwork(), list[str]()
    database = Database(path)
    node = node_after(tmp_path, database, network, removed)
    recovery.load(node)
    pod = node.model.pod(pod_id)
    assert pod.state == cri.SANDBOX_NOTREADY
    assert node.model.container(ran).state == cri.CONTAINER_UNKNOWN
    for settling in recovery.start(node):
        settling.result(60)
    record = node.model.container(ran).record
    assert (record.exit_code, record.reason) == (255, "ContainerStatusUnknown")
    assert node.model.container(created).state == cri.CONTAINER_CREATED
    with pytest.raises(FailedPrecondition):
        pod.require_ready()
    deadline = time.monotonic() + 60
    while removed != [half]:
        assert time.monotonic() < deadline, removed
        time.sleep(0.01)

    stop_pod(node, pod)
    assert network.deleted == [pod_id]
    context: Any = None
    remove_pod_sandbox(node, cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id), context)
    while database.owners():
        assert time.monotonic() < deadline + 5, database.owners()
        time.sleep(0.01)
    assert sorted(removed) == sorted([half, ran, created, pod_id])
    assert not (tmp_path / "root/sandboxes" / pod_id).exists()
    assert node.model.everything() == []
    assert database.load() == ([], [])
    node.background.stop()
    database.close()
