"""A pod with one running container behind a shim that records what it is asked: for tests of sandbox-svc."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bulkhead.config.model import Bulkhead, Config, Nri
from bulkhead.errors import NotFound
from bulkhead.proto import shim_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import process
from sandbox_svc.background import Background
from sandbox_svc.checkpoint.under_way import UnderWay
from sandbox_svc.ledger import Ledger
from sandbox_svc.nri.hooks import Hooks
from sandbox_svc.nri.lifecycle import Lifecycle
from sandbox_svc.nri.node_runtime import Controllers, NodeRuntime
from sandbox_svc.nri_exec import Chain
from sandbox_svc.store.database import Database, Entry
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.model import Model
from sandbox_svc.store.records import ContainerRecord, Exit, Phase, Process, SandboxRecord, ShimBinding
from sandbox_svc.watch import Watcher


class FakeLink:
    """A shim that keeps `calls`, and what each container's State would say."""

    RUNNING, PAUSED = 2, 4

    def __init__(self, binding: ShimBinding) -> None:
        self.binding = binding
        self.ours = True
        self.calls: list[tuple[Any, ...]] = []
        self.exits: dict[str, Exit] = {}
        self.unknown: set[str] = set()
        self.reported: list[shim_pb2.Exit] = []
        self.on_kill: Any = lambda ident, number: None
        self.refuse: Exception | None = None

    def connect(self) -> None:
        if self.refuse:
            raise self.refuse

    def close(self) -> None:
        self.calls.append(("close",))

    def kill(self, ident: str, number: int, *, all: bool = False) -> bool:
        self.calls.append(("kill", ident[:1], number))
        if self.refuse:
            raise self.refuse
        self.on_kill(ident, number)
        return True

    def wait(self, ident: str) -> "Future[Any]":
        self.calls.append(("wait", ident[:1]))
        return Future()

    def resume(self, ident: str, timeout: float = 0) -> None:
        self.calls.append(("resume", ident[:1]))

    def delete(self, ident: str) -> None:
        self.calls.append(("delete", ident[:1]))

    def exited(self, ident: str) -> Exit | None:
        if ident in self.unknown:
            raise NotFound(ident)
        return self.exits.get(ident)

    def state(self, ident: str) -> Any:
        return SimpleNamespace(status=self.RUNNING, pid=process_of_ours().pid)

    def shutdown(self, ident: str) -> None:
        self.calls.append(("shutdown",))

    def ours_call(self, method: str, *_: object) -> shim_pb2.ExitsResponse:
        self.calls.append((method,))
        return shim_pb2.ExitsResponse(exits=self.reported)


def process_of_ours() -> Process:
    found = process.identify(os.getpid())
    assert found is not None
    return found


def without_plugins(model: Model, bundles: Callable[[str], Path], background: Background) -> Lifecycle:
    """NRI as it is with nobody to listen."""
    runtime = NodeRuntime(model, bundles, Controllers())
    return Lifecycle(Hooks(Nri(disable=True), runtime, "0"), runtime, background)


@contextmanager
def one_pod(tmp_path: Path) -> Iterator[Any]:
    """A pod with one running container, a recording shim, and a ledger that notes what it undoes."""
    database = Database(tmp_path / "db")
    background = Background()
    undone: list[tuple[str, str]] = []
    ledger = Ledger(
        database, dict.fromkeys(("task", "cni"), lambda entry: undone.append((entry.owner[:1], entry.kind)))
    )
    model = Model()
    binding = ShimBinding("/s/task", process=process_of_ours())
    pod_record = SandboxRecord(
        "p" * 64, cri.PodSandboxConfig(), "runc", "", 1, Phase.PRESENT, 2, shim=binding, process=process_of_ours()
    )
    pod = Pod(pod_record, database)
    link = FakeLink(binding)
    pod.link = link  # type: ignore[assignment] # the recording stand-in
    record = ContainerRecord("c" * 64, "p" * 64, cri.ContainerConfig(), 3, Phase.PRESENT, 4, process=process_of_ours())
    container = Container(record, pod, database)
    model.add_pod(pod)
    model.add_container(container)
    for entity in (pod, container):
        database.save(entity.record, [Entry("task", {})])

    def bundles(ident: str) -> Path:
        return tmp_path / ident[:1]

    node = SimpleNamespace(
        config=Config(),
        nri=without_plugins(model, bundles, background),
        exec_plugins=Chain(Bulkhead(nri_exec_conf_path="", nri_exec_conf_dir="")),
        checkpoints=UnderWay(),
        model=model,
        database=database,
        ledger=ledger,
        background=background,
        watcher=Watcher(ledger, background),
        bundle=bundles,
    )
    yield SimpleNamespace(node=node, pod=pod, container=container, link=link, undone=undone, tmp=tmp_path)
    background.stop()
    database.close()
