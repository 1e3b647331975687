"""What the RPCs tell plugins, with hooks that only remember."""

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bulkhead.errors import FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import limits
from sandbox_svc.nri import node_runtime
from sandbox_svc.nri.hooks import UpdateContainerResult
from sandbox_svc.nri.lifecycle import Lifecycle
from sandbox_svc.nri.node_runtime import Controllers, NodeRuntime
from sandbox_svc.rpc import run_pod_sandbox, update
from sandbox_svc.store.entities import Container, Told
from sandbox_svc.store.records import ContainerRecord, Exit, Phase


class Recording:
    """Hooks that answer what a test says, and keep what they were told."""

    def __init__(self) -> None:
        self.active = True
        self.told: list[str] = []
        self.answers: dict[str, Any] = {}

    def operation(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    teardown = operation

    def __getattr__(self, name: str) -> Any:
        def tell(*messages: Any) -> Any:
            self.told.append(name)
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return tell


@pytest.fixture
def plugged(world: Any) -> Any:
    """The world's pod with one running container of 2 shares, and recording hooks."""
    world.hooks = Recording()
    (world.tmp / "c").mkdir()
    (world.tmp / "c" / "config.json").write_text(json.dumps({"linux": {"resources": {"cpu": {"shares": 2}}}}))
    world.updates = []
    world.link.update = lambda ident, raw, annotations: world.updates.append((ident[0], json.loads(raw)))
    runtime = NodeRuntime(world.node.model, world.node.bundle, Controllers())
    world.node.nri = Lifecycle(world.hooks, runtime, world.node.background)
    world.node.facts = SimpleNamespace(swap_accounting=True)
    world.container.told = world.pod.told = Told.MADE
    return world


def shares(number: int, ident: str = "c" * 64, **fields: Any) -> nri.ContainerUpdate:
    resources = nri.LinuxResources(cpu=nri.LinuxCPU(shares=nri.OptionalUInt64(value=number)))
    return nri.ContainerUpdate(container_id=ident, linux=nri.LinuxContainerUpdate(resources=resources), **fields)


def bundle_of(world: Any) -> Any:
    return json.loads((world.tmp / "c" / "config.json").read_text())["linux"]["resources"]


def test_a_stop_and_a_removal_are_told_once(plugged: Any) -> None:
    """The container's own end, StopContainer, the pod's stop and the removal may all find out."""
    plugged.hooks.answers["stop_container"] = []
    for _ in range(2):
        plugged.node.nri.stopped(plugged.container)
        plugged.node.nri.removed(plugged.container)
        plugged.node.nri.pod_removed(plugged.pod)
    assert plugged.hooks.told == ["stop_container", "remove_container", "stop_pod_sandbox", "remove_pod_sandbox"]


def test_what_nobody_heard_of_is_not_ended(plugged: Any) -> None:
    """A creation that fails before plugins are asked is nothing to them."""
    plugged.container.told = plugged.pod.told = Told.NOTHING
    plugged.node.nri.uncreated(plugged.container)
    plugged.node.nri.pod_removed(plugged.pod)
    assert plugged.hooks.told == []


@pytest.mark.parametrize("refused", [True, False])
def test_a_pod_that_fails_after_plugins_have_heard_of_it(
    plugged: Any, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    """Plugins hear that there is no pod: where one refused it, and where what comes after them failed."""
    if refused:
        plugged.hooks.answers["run_pod_sandbox"] = FailedPrecondition("no")

    def run(creation: Any) -> None:
        creation.step = "telling NRI plugins"
        plugged.node.nri.running(creation._pod, creation._pod.record)
        raise FailedPrecondition("the shim hung up")

    monkeypatch.setattr(run_pod_sandbox._Creation, "run", run)
    plugged.node.users = lambda pod: None
    runtime: Any = SimpleNamespace(name="runc")
    with pytest.raises(FailedPrecondition, match="no" if refused else "hung up"):
        run_pod_sandbox._create(plugged.node, cri.PodSandboxConfig(), "", runtime, "a" * 64)
    assert plugged.hooks.told == ["run_pod_sandbox", "stop_pod_sandbox", "remove_pod_sandbox"]
    assert [pod.id for pod in plugged.node.model.everything()] == [plugged.pod.id]


def test_nothing_keeps_a_pod_from_its_end(plugged: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where telling of a stop or a removal fails, even for a mistake of ours, it is logged, and the pod goes."""
    for name in ("stop_container", "remove_container", "stop_pod_sandbox", "remove_pod_sandbox"):
        plugged.hooks.answers[name] = KeyError(name)
    plugged.node.nri.removed(plugged.container)
    plugged.node.nri.pod_removed(plugged.pod)
    assert plugged.hooks.told == ["stop_container", "remove_container", "stop_pod_sandbox", "remove_pod_sandbox"]
    assert (plugged.container.told, plugged.pod.told) == (Told.REMOVED, Told.REMOVED)
    assert len([line for line in caplog.records if "not told" in line.getMessage()]) == 4


def test_what_has_been_told_waits_for_nobody(plugged: Any) -> None:
    """A stop or a removal that plugins know of already does not pass the gate: a synchronization may hold it."""
    plugged.hooks.teardown = None
    plugged.container.told, plugged.pod.told = Told.STOPPED, Told.REMOVED
    plugged.node.nri.stopped(plugged.container)
    plugged.node.nri.pod_stopped(plugged.pod)
    plugged.node.nri.pod_removed(plugged.pod)
    plugged.container.told = Told.REMOVED
    plugged.node.nri.removed(plugged.container)
    assert plugged.hooks.told == []


def test_what_is_removed_is_not_updated(plugged: Any) -> None:
    """A removal that came first leaves nothing to change, neither for the kubelet nor for plugins."""
    plugged.container.update(started_at=0)
    updates = [shares(7), shares(7, "p" * 64)]
    with ThreadPoolExecutor(2) as pool:
        with plugged.container.operation, plugged.pod.operation:
            context: Any = None
            request: Any = cri.UpdateContainerResourcesRequest(container_id=plugged.container.id)
            first = pool.submit(update.update_container_resources, plugged.node, request, context)
            request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=plugged.pod.id)
            second = pool.submit(update.update_pod_sandbox_resources, plugged.node, request, context)
            time.sleep(0.05)
            for entity in (plugged.container, plugged.pod):
                entity.update(phase=Phase.REMOVING)
        for outcome in (first, second):
            assert isinstance(outcome.exception(60), NotFound)
    with pytest.raises(NotFound):
        plugged.node.nri.runtime.change(plugged.container, updates[0].linux.resources)
    assert plugged.node.nri.runtime.update_containers(updates, time.monotonic() + 5) == []
    assert (plugged.hooks.told, plugged.updates) == ([], [])


def test_a_pods_new_resources_are_checked(plugged: Any) -> None:
    """What the kernel would cut at a NUL byte is refused, and plugins do not hear of it."""
    request = cri.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=plugged.pod.id, resources=cri.LinuxContainerResources(cpuset_cpus="0\0")
    )
    context: Any = None
    with pytest.raises(InvalidArgument, match="cpuset_cpus"):
        update.update_pod_sandbox_resources(plugged.node, request, context)
    assert plugged.hooks.told == []


def test_without_plugins_nothing_is_built(plugged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is a spec read nor a message made; an end that nobody hears of is still noted."""
    plugged.hooks.active = False
    monkeypatch.setattr(node_runtime, "bundle", None)
    monkeypatch.setattr(node_runtime, "convert", None)
    events = plugged.node.nri
    container, pod, cgroup = plugged.container, plugged.pod, cri.LinuxContainerResources()
    assert events.creating(container, container.record, {}) is None
    assert events.updating(container, cgroup) is None
    events.running(pod, pod.record)
    events.updating_pod(pod, cri.UpdatePodSandboxResourcesRequest())
    for tell in (events.created, events.started, events.updated, events.ended):
        tell(container)
    events.starting(container, 1)
    assert container.told is Told.STOPPED
    events.removed(container)
    events.pod_removed(pod)
    assert plugged.hooks.told == []


def test_an_exit_is_told_behind_the_watcher(plugged: Any) -> None:
    """Recording an exit waits for no plugin; the pause process's end is no event."""
    plugged.hooks.answers["stop_container"] = []
    plugged.node.watcher._tell = plugged.node.nri.ended
    plugged.node.watcher.finish(plugged.container, Exit(1, 9))
    plugged.node.watcher.finish(plugged.pod, Exit(1, 9))
    deadline = time.monotonic() + 60
    while plugged.container.told is Told.MADE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert plugged.hooks.told == ["stop_container"]


def test_updates_of_others(plugged: Any) -> None:
    """They reach the cgroup, the bundle and the status; whom nobody knows, or who has ended, needs none."""
    ended = Container(
        ContainerRecord("e" * 64, "p" * 64, cri.ContainerConfig(), 1, Phase.PRESENT, 2, 3),
        plugged.pod,
        plugged.node.database,
    )
    plugged.node.model.add_container(ended)
    updates = [shares(7), shares(8, "f" * 64), shares(8, "e" * 64), shares(8, "cc"), shares(8, "")]
    plugged.hooks.answers["create_container"] = nri.CreateContainerResponse(update=updates)
    plugged.node.nri.creating(plugged.container, plugged.container.record, {})
    assert plugged.updates == [("c", {"cpu": {"shares": 7}})]
    assert bundle_of(plugged) == {"cpu": {"shares": 7}}
    assert cri.LinuxContainerResources.FromString(plugged.container.record.resources).cpu_shares == 7


@pytest.mark.parametrize("ignored", [True, False])
def test_an_update_of_another_that_fails(plugged: Any, ignored: bool) -> None:
    """It fails the creation it was for, unless the plugin says that it may fail; the bundle says what holds."""

    def refuse(*_: object) -> None:
        raise FailedPrecondition("runc: no")

    plugged.link.update = refuse
    answer = nri.CreateContainerResponse(update=[shares(7, ignore_failure=ignored)])
    plugged.hooks.answers["create_container"] = answer
    if ignored:
        plugged.node.nri.creating(plugged.container, plugged.container.record, {})
    else:
        with pytest.raises(FailedPrecondition, match="NRI plugins want other limits for cccc"):
            plugged.node.nri.creating(plugged.container, plugged.container.record, {})
    assert bundle_of(plugged) == {"cpu": {"shares": 2}}


def test_updates_have_a_deadline(plugged: Any) -> None:
    """What there is no time for has failed."""
    failed = plugged.node.nri.runtime.update_containers([shares(7)], time.monotonic() - 1)
    assert failed == [shares(7)]
    assert plugged.updates == []


def test_an_update_as_plugins_want_it(plugged: Any) -> None:
    """Their limits lie over the request's, in the cgroup and in the status, which keeps what only the CRI can say."""
    resources = nri.LinuxResources(
        cpu=nri.LinuxCPU(shares=nri.OptionalUInt64(value=9), quota=nri.OptionalInt64(value=0)),
        pids=nri.LinuxPids(limit=3),
    )
    plugged.hooks.answers["update_container"] = UpdateContainerResult(resources)
    asked = cri.LinuxContainerResources(cpu_shares=5, cpu_quota=1000, oom_score_adj=4)
    request = cri.UpdateContainerResourcesRequest(container_id=plugged.container.id, linux=asked)
    plugged.node.exec_plugins.plugins()
    context: Any = None
    update.update_container_resources(plugged.node, request, context)
    assert plugged.updates == [("c", {"cpu": {"shares": 9, "quota": 1000}, "pids": {"limit": 3}})]
    shown = cri.LinuxContainerResources.FromString(plugged.container.record.resources)
    assert (shown.cpu_shares, shown.cpu_quota, shown.oom_score_adj) == (9, 1000, 4)
    assert plugged.hooks.told == ["update_container", "post_update_container"]


def test_limits_changed_while_a_container_starts(plugged: Any, tmp_path: Path) -> None:
    """The runtime made the cgroup with the limits before; what came since is set once the container runs."""
    container = plugged.container
    container.update(started_at=0)
    known = container.limits_changed
    plugged.node.nri.runtime.update_containers([shares(7)], time.monotonic() + 5)
    assert plugged.updates == []
    container.update(started_at=9)
    limits.catch_up(container, plugged.node.bundle(container.id), known)
    limits.catch_up(container, plugged.node.bundle(container.id), container.limits_changed)
    assert plugged.updates == [("c", {"cpu": {"shares": 7}})]


def test_the_snapshot(plugged: Any) -> None:
    """What ended and what nobody knows the state of is left out."""
    found = plugged.node.nri.runtime.snapshot()
    assert ([pod.id[0] for pod in found.pods], [c.id[0] for c in found.containers]) == (["p"], ["c"])
    plugged.container.doubt(True)
    plugged.pod.doubt(True)
    found = plugged.node.nri.runtime.snapshot()
    assert (list(found.pods), list(found.containers)) == ([], [])
