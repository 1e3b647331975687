"""What the node tells plugins, what comes of it, and when it must not go on."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bulkhead.config.model import Nri, NriValidator
from bulkhead.errors import BulkheadError, DeadlineExceeded, FailedPrecondition, Unavailable
from bulkhead.proto.containerd import nri_pb2 as nri
from sandbox_svc.nri import relay
from sandbox_svc.nri.hooks import Hooks
from support.nri import MemoryNode, container, eventually, pod
from support.nri_peer import Answers, Peer

CONFIG = Nri(plugin_registration_timeout=10.0, plugin_request_timeout=10.0)
NEEDS = NriValidator(enable=True, required_plugins=("guard",), tolerate_missing_plugins_annotation="tolerate.x")
#: Methods that a request can be refused by, and the call that makes it.
REFUSABLE: dict[str, Callable[[Hooks], Any]] = {
    "RunPodSandbox": lambda hooks: hooks.run_pod_sandbox(pod()),
    "UpdatePodSandbox": lambda hooks: hooks.update_pod_sandbox(pod(), nri.LinuxResources(), nri.LinuxResources()),
    "CreateContainer": lambda hooks: hooks.create_container(pod(), container()),
    "StartContainer": lambda hooks: hooks.start_container(pod(), container()),
    "UpdateContainer": lambda hooks: hooks.update_container(pod(), container(), nri.LinuxResources()),
}
#: Those that nothing can refuse.
FINAL: dict[str, Callable[[Hooks], Any]] = {
    "PostUpdatePodSandbox": lambda hooks: hooks.post_update_pod_sandbox(pod()),
    "StopPodSandbox": lambda hooks: hooks.stop_pod_sandbox(pod()),
    "RemovePodSandbox": lambda hooks: hooks.remove_pod_sandbox(pod()),
    "PostCreateContainer": lambda hooks: hooks.post_create_container(pod(), container()),
    "PostStartContainer": lambda hooks: hooks.post_start_container(pod(), container()),
    "PostUpdateContainer": lambda hooks: hooks.post_update_container(pod(), container()),
    "StopContainer": lambda hooks: hooks.stop_container(pod(), container()),
    "RemoveContainer": lambda hooks: hooks.remove_container(pod(), container()),
}
#: Everything but ValidateContainerAdjustment, which a plugin of this mask does not vote on.
QUIET = (1 << 13) - 1


class World:
    """Hooks with peers that act as plugins."""

    def __init__(self, config: Nri) -> None:
        self.node = MemoryNode()
        self.hooks = Hooks(config, self.node, "1")
        self.peers: list[Peer] = []

    def join(self, name: str, answers: Answers | None = None, *, events: int = QUIET, policy: Any = None) -> Peer:
        """Add a plugin "NN-name"."""
        index, _, base = name.partition("-")
        configured = nri.ConfigureResponse(events=events, failure_policy=policy)
        peer = Peer({"Configure": lambda raw: configured, **(answers or {})})
        self.peers.append(peer)
        threading.Thread(target=peer.register, args=(base, index), daemon=True).start()
        registry = self.hooks._registry
        assert registry.admit(registry.plugin(peer.ours), "test")
        return peer

    def hasten(self) -> None:
        """Have plugins answer soon from now on; until now a busy machine had its time."""
        for plugin in self.hooks._registry.plugins:
            plugin._config = replace(plugin._config, plugin_request_timeout=0.2)

    def names(self) -> list[str]:
        """The plugins in order."""
        return [plugin.name for plugin in self.hooks._registry.plugins]


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    """Close what a test made."""
    made: list[World] = []
    yield made
    for world in made:
        plugins = world.hooks._registry.plugins
        world.hooks.stop()
        for peer in world.peers:
            with contextlib.suppress(OSError):
                peer.theirs.shutdown(2)
            peer._thread.join(60)
            peer.close()
        for plugin in plugins:
            eventually(lambda plugin=plugin: plugin.closed)  # type: ignore[misc]


@pytest.fixture
def world(worlds: list[World]) -> World:
    """Hooks without a validator."""
    worlds.append(World(CONFIG))
    return worlds[-1]


@pytest.fixture
def guarded(worlds: list[World]) -> World:
    """Hooks that require a plugin of the name "guard"."""
    worlds.append(World(replace(CONFIG, default_validator=NEEDS)))
    return worlds[-1]


def adjusting(**env: str) -> Answers:
    """A plugin that sets environment variables."""
    answer = nri.CreateContainerResponse()
    for key, value in env.items():
        answer.adjust.env.add(key=key, value=value)
    return {"CreateContainer": lambda raw: answer}


def count(event: str, verdict: str) -> float:
    """The counter of requests."""
    return float(relay.REQUESTS.labels(event, verdict)._value.get())


def test_nothing_is_active_without_plugins(world: World) -> None:
    """Without plugins nothing is to be built or called, and calls come to nothing."""
    assert not world.hooks.active
    assert world.hooks.create_container(pod(), container()).adjust == nri.ContainerAdjustment()
    for call in (*REFUSABLE.values(), *FINAL.values()):
        call(world.hooks)


def test_a_disabled_nri_is_never_active(worlds: list[World]) -> None:
    """With `disable`, not even the validator has a say, and nothing is opened."""
    worlds.append(World(replace(CONFIG, disable=True, default_validator=NEEDS, socket_path="/nonexistent/x")))
    worlds[-1].hooks.start()

    assert not worlds[-1].hooks.active
    assert worlds[-1].hooks.notes() == []


def test_plugins_are_asked_in_the_order_of_their_indices(world: World) -> None:
    """The index decides, then who came first; each sees what those before it did."""
    world.join("20-b", adjusting(B="1"))
    world.join("10-a", adjusting(A="1"))
    world.join("20-a", adjusting(C="1"))

    answer = world.hooks.create_container(pod(), container())

    assert world.names() == ["10-a", "20-b", "20-a"]
    assert [(pair.key, pair.value) for pair in answer.adjust.env] == [("A", "1"), ("B", "1"), ("C", "1")]
    seen = [
        nri.CreateContainerRequest.FromString(raw).container.env
        for peer in (world.peers[1], world.peers[0])
        for method, raw in peer.called
        if method == "CreateContainer"
    ]
    assert [list(env) for env in seen] == [["A=1", "B=2"], ["B=2", "A=1"]]


def test_every_event_reaches_plugins(world: World) -> None:
    """Each hook calls the method of its event, with the pod and the container."""
    peer = world.join("10-a")
    for call in (*REFUSABLE.values(), *FINAL.values()):
        call(world.hooks)

    assert peer.methods() == ["Configure", "Synchronize", *REFUSABLE, *FINAL]
    for method, raw in peer.called[2:]:
        request = getattr(nri, f"{method}Request").FromString(raw)
        assert request.pod == pod(), method
        assert "Container" not in method or request.container == container(), method


def test_events_that_a_plugin_does_not_want_are_not_sent(world: World) -> None:
    """A plugin hears of what it subscribed to alone."""
    peer = world.join("10-a", events=1 << (nri.Event.START_CONTAINER - 1))
    for call in (*REFUSABLE.values(), *FINAL.values()):
        call(world.hooks)

    assert peer.methods()[2:] == ["StartContainer"]


@pytest.mark.parametrize("method", REFUSABLE)
def test_a_plugins_error_fails_what_can_still_be_refused(world: World, method: str) -> None:
    """The error names the plugin and the request, and the plugin stays."""
    world.join("10-a", {method: lambda raw: (9, "no such luck")})

    with pytest.raises(FailedPrecondition, match=f"NRI plugin 10-a failed {method}: no such luck"):
        REFUSABLE[method](world.hooks)
    assert world.names() == ["10-a"]


@pytest.mark.parametrize("method", FINAL)
def test_a_plugins_error_stops_nothing_that_is_done(world: World, method: str) -> None:
    """What cannot be refused any more goes on, and the next plugin hears of it."""
    world.join("10-a", {method: lambda raw: (9, "no such luck")})
    other = world.join("20-b")

    FINAL[method](world.hooks)

    assert other.methods()[-1] == method


@pytest.mark.parametrize("method", [*REFUSABLE, *FINAL])
def test_a_plugin_that_is_too_late_is_dropped(world: World, method: str) -> None:
    """The operation goes on without it, and it is disconnected."""
    world.join("10-a", {method: lambda raw: None})
    world.hasten()
    before = count(method, "timeout")

    (REFUSABLE | FINAL)[method](world.hooks)

    assert world.names() == []
    assert count(method, "timeout") == before + 1


def test_a_plugin_may_wish_to_be_kept_or_to_fail_the_request(world: World) -> None:
    """keep_connected keeps one that was late, fail_request fails what it did not answer."""
    policy = nri.FailurePolicy(fail_request=True, keep_connected=True)
    world.join("10-a", {"StartContainer": lambda raw: None}, policy=policy)
    world.hasten()

    with pytest.raises(DeadlineExceeded, match="NRI plugin 10-a failed StartContainer"):
        REFUSABLE["StartContainer"](world.hooks)
    assert world.names() == ["10-a"]


@pytest.mark.parametrize("method", REFUSABLE)
def test_a_required_plugin_that_is_missing_fails_the_operation(guarded: World, method: str) -> None:
    """Without the plugin nothing is made, and the error and the readiness say which one."""
    before = count(method, "missing")

    with pytest.raises(FailedPrecondition, match=f'{method}: required NRI plugin "guard" is not connected'):
        REFUSABLE[method](guarded.hooks)

    assert guarded.hooks.active
    assert "guard" in guarded.hooks.notes()[0]
    assert count(method, "missing") == before + 1


@pytest.mark.parametrize("method", REFUSABLE)
def test_a_required_plugin_that_fails_fails_the_operation(guarded: World, method: str) -> None:
    """Too late or gone in the middle: the operation fails now, and the next one because the plugin is missing."""
    guarded.join("10-guard", {method: lambda raw: None})
    guarded.hasten()
    with pytest.raises(DeadlineExceeded, match="10-guard"):
        REFUSABLE[method](guarded.hooks)
    with pytest.raises(FailedPrecondition, match="not connected"):
        REFUSABLE[method](guarded.hooks)

    peer = guarded.join("10-guard")
    peer.answers[method] = lambda raw: peer.theirs.shutdown(2)
    with pytest.raises(Unavailable, match="10-guard"):
        REFUSABLE[method](guarded.hooks)


@pytest.mark.parametrize("method", FINAL)
def test_a_missing_required_plugin_keeps_nothing_alive(guarded: World, method: str) -> None:
    """Pods and containers can be stopped and removed without it."""
    FINAL[method](guarded.hooks)


def test_a_required_plugin_that_answers_lets_everything_pass(guarded: World) -> None:
    """With the plugin there, by name or with its index, operations succeed."""
    guarded.join("42-guard")
    annotated = pod(**{"required-plugins.noderesource.dev": "[42-guard]"})

    guarded.hooks.run_pod_sandbox(annotated)
    guarded.hooks.create_container(annotated, container())
    assert guarded.hooks.notes() == []


def test_annotations_require_and_tolerate(guarded: World) -> None:
    """A pod may require more plugins for a container, and do without the required ones."""
    needs = pod(**{"required-plugins.noderesource.dev/container.app": "[extra]"})
    guarded.join("10-guard")

    guarded.hooks.run_pod_sandbox(needs)
    guarded.hooks.create_container(needs, container(name="other"))
    with pytest.raises(FailedPrecondition, match='"extra"'):
        guarded.hooks.create_container(needs, container(name="app"))
    guarded.hooks.create_container(pod(**{"tolerate.x/pod": "true"}), container())


def test_a_state_of_the_node_is_told_once(world: World) -> None:
    """A plugin that comes is told of everything; its updates are applied."""
    world.node.pods, world.node.containers = [pod("p1"), pod("p2")], [container("c1")]
    wanted = nri.SynchronizeResponse(update=[nri.ContainerUpdate(container_id="c1")])
    peer = world.join("10-a", {"Synchronize": lambda raw: wanted})

    told = nri.SynchronizeRequest.FromString(peer.called[1][1])
    assert [one.id for one in told.pods] == ["p1", "p2"]
    assert [one.id for one in told.containers] == ["c1"]
    assert [one.container_id for one in world.node.updates] == ["c1"]


def test_a_synchronization_waits_for_operations(world: World) -> None:
    """A plugin that comes in the middle of an operation hears of it by its state, not by half an event."""
    peer = Peer()
    world.peers.append(peer)
    threading.Thread(target=peer.register, daemon=True).start()
    registry = world.hooks._registry
    admitting = threading.Thread(target=registry.admit, args=(registry.plugin(peer.ours), "test"))
    with world.hooks.operation():
        admitting.start()
        eventually(lambda: peer.methods() == ["Configure"])
        time.sleep(0.05)
        assert peer.methods() == ["Configure"]
        world.node.pods.append(pod("late"))
    admitting.join(60)

    told = nri.SynchronizeRequest.FromString(peer.called[1][1])
    assert [one.id for one in told.pods] == ["late"]


def test_what_happens_during_a_synchronization_is_heard_after_it(world: World) -> None:
    """A plugin that is being synchronized, the first one too, hears of what comes meanwhile."""
    told, go = threading.Event(), threading.Event()

    def slow(raw: bytes) -> nri.SynchronizeResponse:
        told.set()
        go.wait(30)
        return nri.SynchronizeResponse()

    joining = threading.Thread(target=world.join, args=("10-a", {"Synchronize": slow}))
    joining.start()
    assert told.wait(30)
    assert world.hooks.active
    calls = [threading.Thread(target=call, args=(world.hooks,)) for call in (REFUSABLE | FINAL).values()]
    for call in calls:
        call.start()
    time.sleep(0.05)
    assert world.peers[0].methods() == ["Configure", "Synchronize"]
    go.set()
    for thread in (joining, *calls):
        thread.join(60)

    assert sorted(world.peers[0].methods()[2:]) == sorted([*REFUSABLE, *FINAL])


def test_two_plugins_that_set_the_same_fail_the_container(world: World) -> None:
    """The conflict is the operation's error, with both names."""
    world.join("10-a", adjusting(X="1"))
    world.join("20-b", adjusting(X="2"))

    with pytest.raises(FailedPrecondition, match='"20-b" and "10-a" both tried to set Env X'):
        world.hooks.create_container(pod(), container())


def test_validating_plugins_see_everything_and_may_refuse(world: World) -> None:
    """A validator is shown the container as asked for, the outcome, its owners and the plugins; its no is final."""
    world.join("10-a", adjusting(X="1"))
    verdict = nri.ValidateContainerAdjustmentResponse(reject=True, reason="not in my house")
    peer = world.join(
        "20-v",
        {"ValidateContainerAdjustment": lambda raw: verdict},
        events=1 << (nri.Event.VALIDATE_CONTAINER_ADJUSTMENT - 1),
    )

    with pytest.raises(FailedPrecondition, match="20-v rejects the container: not in my house"):
        world.hooks.create_container(pod(), container())

    shown = nri.ValidateContainerAdjustmentRequest.FromString(peer.called[-1][1])
    assert shown.container == container()
    assert [(pair.key, pair.value) for pair in shown.adjust.env] == [("X", "1")]
    assert shown.owners.owners["c1"].compound[nri.Field.Env].owners["X"] == "10-a"
    assert {(one.index, one.name) for one in shown.plugins} >= {("10", "a"), ("20", "v")}


def test_a_validator_that_does_not_answer_refuses(world: World) -> None:
    """Silence is no consent."""
    world.join(
        "20-v",
        {"ValidateContainerAdjustment": lambda raw: None},
        events=1 << (nri.Event.VALIDATE_CONTAINER_ADJUSTMENT - 1),
    )
    world.hasten()

    with pytest.raises(DeadlineExceeded, match="20-v"):
        world.hooks.create_container(pod(), container())


def test_an_update_is_changed_by_plugins(world: World) -> None:
    """Plugins change the resources asked for, one after the other, and those of others."""
    answer = nri.UpdateContainerResponse()
    answer.update.add(container_id="c1").linux.resources.cpu.cpus = "0"
    answer.update.add(container_id="c9").linux.resources.cpu.cpus = "1"
    world.join("10-a", {"UpdateContainer": lambda raw: answer})
    second = world.join("20-b")
    asked = nri.LinuxResources()
    asked.memory.limit.value = 5

    result = world.hooks.update_container(pod(), container(), asked)

    assert (result.resources.memory.limit.value, result.resources.cpu.cpus) == (5, "0")
    assert [one.container_id for one in result.others] == ["c9"]
    shown = nri.UpdateContainerRequest.FromString(second.called[-1][1])
    assert (shown.linux_resources.memory.limit.value, shown.linux_resources.cpu.cpus) == (5, "0")


def test_requests_are_made_one_at_a_time(world: World) -> None:
    """A plugin never hears of two things at once."""
    inside, most = list[int](), list[int]()

    def slow(raw: bytes) -> nri.Empty:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return nri.Empty()

    world.join("10-a", {"StartContainer": slow})
    threads = [threading.Thread(target=REFUSABLE["StartContainer"], args=(world.hooks,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert most == [1] * 5


def test_a_plugin_that_goes_is_forgotten(world: World) -> None:
    """A closed connection takes the plugin off the list, without a request having to find out."""
    peer = world.join("10-a")
    peer.theirs.shutdown(2)

    eventually(lambda: world.names() == [])
    assert not world.hooks.active


def test_stopping_tells_plugins(world: World) -> None:
    """Plugins hear Shutdown, and are disconnected."""
    peer = world.join("10-a")
    world.hooks.stop()

    assert peer.methods()[-1] == "Shutdown"
    assert world.names() == []


def test_a_plugin_that_fails_its_synchronization_is_not_used(world: World) -> None:
    """What could not be told of the state of things is never asked."""
    with pytest.raises(AssertionError):
        world.join("10-a", {"Synchronize": lambda raw: (13, "no")})

    assert world.names() == []


def test_a_state_that_cannot_be_told_costs_the_plugin(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while a plugin is admitted, it is let go of, and the next one can come."""

    def snapshot() -> Any:
        raise KeyError("linux")

    with monkeypatch.context() as patched:
        patched.setattr(world.node, "snapshot", snapshot)
        with pytest.raises(AssertionError):
            world.join("10-a")
    eventually(lambda: world.peers[0].theirs.fileno() < 0 or not world.peers[0]._thread.is_alive())
    world.join("10-b")

    assert world.names() == ["10-b"]


def test_an_answer_of_another_message_is_an_error(world: World) -> None:
    """Bytes that are not the answer's message fail the request, and neither the service nor others."""
    world.join("10-a", {"CreateContainer": lambda raw: nri.RegisterPluginRequest(plugin_name="\x0f")})

    with pytest.raises(BulkheadError, match="10-a failed CreateContainer"):
        world.hooks.create_container(pod(), container())
    assert world.names() == ["10-a"]
