"""One plugin at the other end of a socket, well-behaved or not."""

import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from bulkhead import command
from bulkhead.config.model import Nri
from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument, ResourceExhausted
from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.containerd.nri_pb2 import Event
from bulkhead.ttrpc_frames import MESSAGE_LIMIT
from sandbox_svc.nri import mux
from sandbox_svc.nri.connection import Lost, TimedOut
from sandbox_svc.nri.events import ALL_EVENTS
from sandbox_svc.nri.plugin import SYNC_LIMIT, UPDATES_AT_ONCE, Plugin
from support.nri_peer import Answers, Peer

#: A plugin on a busy machine takes its time; the other is for those that are too slow.
CONFIG = Nri(plugin_registration_timeout=60, plugin_request_timeout=60)
IMPATIENT = Nri(plugin_registration_timeout=0.5, plugin_request_timeout=0.3)


class Pair:
    """A plugin and its peer."""

    def __init__(self, answers: Answers | None = None, config: Nri = CONFIG) -> None:
        self.peer = Peer(answers)
        self.ended: list[Plugin] = []
        self.updates: list[Sequence[nri.ContainerUpdate]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.plugin = Plugin(self.peer.ours, config, "1.2", self._update, self.ended.append)

    def _update(self, updates: Sequence[nri.ContainerUpdate]) -> list[nri.ContainerUpdate]:
        self.updates.append(updates)
        self.hold.wait(30)
        return list(updates[:1])

    def begin(self, name: str = "p", index: str = "10") -> None:
        """Register as another thread would, and configure."""
        registering = threading.Thread(target=self.peer.register, args=(name, index), daemon=True)
        registering.start()
        self.plugin.begin()
        registering.join(60)

    def hasten(self, config: Nri = IMPATIENT) -> None:
        """Give the plugin so much time from now on."""
        self.plugin._config = config

    def wait_for_end(self) -> None:
        """Wait until the connection is seen to have ended."""
        deadline = time.monotonic() + 60
        while not self.ended:
            assert time.monotonic() < deadline
            time.sleep(0.005)


pairs: list[Pair] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close every pair, so that no socket is left to the garbage collector."""
    yield
    while pairs:
        pair = pairs.pop()
        pair.hold.set()
        pair.plugin.close()
        if pair.plugin._connection._reader.ident is None:
            pair.peer.ours.close()
        else:
            pair.wait_for_end()
        pair.peer.close()


def make(answers: Answers | None = None, config: Nri = CONFIG) -> Pair:
    pairs.append(Pair(answers, config))
    return pairs[-1]


def test_a_plugin_registers_and_is_configured() -> None:
    """It is told who we are and how long it has; without a mask of its own it hears of everything."""
    pair = make()
    pair.begin("logger", "07")

    assert pair.plugin.name == "07-logger"
    assert pair.plugin.events == ALL_EVENTS
    method, raw = pair.peer.called[0]
    told = nri.ConfigureRequest.FromString(raw)
    assert (method, told.runtime_name, told.runtime_version) == ("Configure", "bulkhead", "1.2")
    assert (told.registration_timeout, told.request_timeout) == (60_000, 60_000)


def test_a_mask_and_a_policy_are_kept() -> None:
    """A plugin hears of what it subscribes to alone, and its failure policy is known."""
    mask = 1 << (Event.CREATE_CONTAINER - 1)
    policy = nri.FailurePolicy(fail_request=True)
    pair = make({"Configure": lambda raw: nri.ConfigureResponse(events=mask, failure_policy=policy)})
    pair.begin()

    assert pair.plugin.subscribes(Event.CREATE_CONTAINER)
    assert not pair.plugin.subscribes(Event.START_CONTAINER)
    assert pair.plugin.policy.fail_request


@pytest.mark.parametrize(
    ("name", "index", "said"),
    [
        ("", "10", "plugin_name"),
        ("a/b", "10", "plugin_name"),
        ("a\nb", "10", "plugin_name"),
        ("x" * 129, "10", "plugin_name"),
        ("a", "1", "two digits"),
        ("a", "123", "two digits"),
        ("a", "1x", "two digits"),
        ("a", "\u0661\u0662", "two digits"),
    ],
)
def test_names_and_indices_are_checked(name: str, index: str, said: str) -> None:
    """A plugin with a name that could mislead a log, or without two digits, is refused and told so."""
    pair = make()
    answers: list[Any] = []
    registering = threading.Thread(target=lambda: answers.append(pair.peer.register(name, index)))
    registering.start()

    with pytest.raises(InvalidArgument, match=said):
        pair.plugin.begin()
    registering.join(60)
    assert answers[0].status.code == InvalidArgument.code


def test_a_plugin_registers_once() -> None:
    """A second registration changes nothing and is refused."""
    pair = make()
    pair.begin("a", "10")

    assert pair.peer.register("b", "20").status.code == FailedPrecondition.code
    assert pair.plugin.name == "10-a"


def test_silence_is_not_waited_for() -> None:
    """One that never registers is given up after the registration's time."""
    pair = make(config=IMPATIENT)
    began = time.monotonic()

    with pytest.raises(TimedOut, match=r"no registration within 0\.5 s"):
        pair.plugin.begin()
    assert time.monotonic() - began < 30


def test_hanging_up_before_registering_is_seen_at_once() -> None:
    """One that hangs up is not waited for."""
    pair = make()
    pair.peer.theirs.shutdown(2)

    with pytest.raises(Lost):
        pair.plugin.begin()


def test_events_that_do_not_exist_are_refused() -> None:
    """A mask with unknown bits is a plugin from the future, and is not used."""
    pair = make({"Configure": lambda raw: nri.ConfigureResponse(events=1 << 20)})

    with pytest.raises(InvalidArgument, match="0x100000"):
        pair.begin()


def test_a_request_that_is_not_answered_ends() -> None:
    """The failure is the plugin's, within the request's time; a late answer disturbs nobody."""
    late: list[int] = []
    go = threading.Event()

    def slow(raw: bytes) -> nri.Empty:
        late.append(1)
        go.wait(60)
        return nri.Empty()

    pair = make({"RunPodSandbox": slow})
    pair.begin()
    pair.hasten()
    with pytest.raises(TimedOut, match=r"within 0\.3 s"):
        pair.plugin.ask(Event.RUN_POD_SANDBOX, nri.RunPodSandboxRequest())
    pair.hasten(CONFIG)
    go.set()

    assert pair.plugin.ask(Event.START_CONTAINER, nri.StartContainerRequest()) is not None
    assert late == [1]


def test_the_plugins_own_deadline_is_a_time_out() -> None:
    """A plugin whose clock was faster says DEADLINE_EXCEEDED: that is the same as no answer."""
    pair = make({"RunPodSandbox": lambda raw: (4, "context deadline exceeded")})
    pair.begin()

    with pytest.raises(TimedOut):
        pair.plugin.ask(Event.RUN_POD_SANDBOX, nri.RunPodSandboxRequest())


def test_an_error_is_the_plugins_word() -> None:
    """An error that the plugin answers with keeps its text; UNAVAILABLE from it is no lost connection."""
    pair = make({"RunPodSandbox": lambda raw: (2, "not today"), "StartContainer": lambda raw: (14, "busy")})
    pair.begin()

    with pytest.raises(BulkheadError, match="not today"):
        pair.plugin.ask(Event.RUN_POD_SANDBOX, nri.RunPodSandboxRequest())
    with pytest.raises(BulkheadError, match="busy") as caught:
        pair.plugin.ask(Event.START_CONTAINER, nri.StartContainerRequest())
    assert not isinstance(caught.value, Lost)


def test_hanging_up_ends_a_request() -> None:
    """A plugin that dies while it is asked fails the request at once."""
    pair = make(config=Nri(plugin_request_timeout=30))
    pair.peer.answers["RunPodSandbox"] = lambda raw: pair.peer.theirs.shutdown(2)
    pair.begin()
    began = time.monotonic()

    with pytest.raises(Lost):
        pair.plugin.ask(Event.RUN_POD_SANDBOX, nri.RunPodSandboxRequest())
    assert time.monotonic() - began < 25
    pair.wait_for_end()
    with pytest.raises(Lost):
        pair.plugin.ask(Event.RUN_POD_SANDBOX, nri.RunPodSandboxRequest())


def test_old_plugins_hear_by_state_change() -> None:
    """A plugin without a method of the event gets StateChange, from then on at once; requests have no such way."""
    unknown = (12, "unimplemented")
    pair = make({"StartContainer": lambda raw: unknown, "CreateContainer": lambda raw: unknown})
    pair.begin()

    assert pair.plugin.ask(Event.START_CONTAINER, nri.StartContainerRequest(container=nri.Container(id="c"))) is None
    assert pair.plugin.ask(Event.STOP_POD_SANDBOX, nri.StopPodSandboxRequest(pod=nri.PodSandbox(id="p"))) is None
    with pytest.raises(BulkheadError, match="unimplemented"):
        pair.plugin.ask(Event.CREATE_CONTAINER, nri.CreateContainerRequest())

    assert pair.peer.methods()[1:] == ["StartContainer", "StateChange", "StateChange", "CreateContainer"]
    changes = [nri.StateChangeEvent.FromString(raw) for method, raw in pair.peer.called if method == "StateChange"]
    assert [(one.event, one.container.id, one.pod.id) for one in changes] == [
        (Event.START_CONTAINER, "c", ""),
        (Event.STOP_POD_SANDBOX, "", "p"),
    ]


def test_a_large_state_comes_in_portions() -> None:
    """Pods and containers beyond one message come in several, in order; all but the last say that there is more."""
    pair = make(config=Nri(plugin_request_timeout=20))
    pair.begin()
    pods = [nri.PodSandbox(id=f"p{number}", name="x" * 100_000) for number in range(50)]
    containers = [nri.Container(id=f"c{number}", name="y" * 100_000) for number in range(50)]

    pair.plugin.synchronize(pods, containers)

    got = [nri.SynchronizeRequest.FromString(raw) for method, raw in pair.peer.called if method == "Synchronize"]
    assert [one.more for one in got] == [True] * (len(got) - 1) + [False]
    assert len(got) == 3
    assert [pod.id for one in got for pod in one.pods] == [pod.id for pod in pods]
    assert [item.id for one in got for item in one.containers] == [item.id for item in containers]
    assert all(one.ByteSize() <= SYNC_LIMIT for one in got)


def test_a_plugin_that_cannot_take_portions_is_refused() -> None:
    """One that answers a portion as if it were all has not seen everything."""
    pair = make({"Synchronize": lambda raw: nri.SynchronizeResponse()}, Nri(plugin_request_timeout=20))
    pair.begin()

    with pytest.raises(FailedPrecondition, match="several messages"):
        pair.plugin.synchronize([nri.PodSandbox(name="x" * 3_000_000)] * 2, [])


def test_an_object_beyond_the_limit_of_a_message_is_an_error() -> None:
    """A single object that no message can carry fails the synchronization, not the service."""
    pair = make(config=Nri(plugin_request_timeout=20))
    pair.begin()

    with pytest.raises(ResourceExhausted):
        pair.plugin.synchronize([nri.PodSandbox(name="x" * (MESSAGE_LIMIT + 1))], [])
    assert pair.plugin.ask(Event.START_CONTAINER, nri.StartContainerRequest()) is not None


def test_unsolicited_updates_are_answered_with_what_failed() -> None:
    """The updates reach the node, and the plugin hears which of them failed."""
    pair = make()
    pair.begin()

    reply = pair.peer.call(
        "UpdateContainers",
        nri.UpdateContainersRequest(
            update=[nri.ContainerUpdate(container_id="a"), nri.ContainerUpdate(container_id="b")]
        ),
    )

    assert [one.container_id for one in nri.UpdateContainersResponse.FromString(reply.payload).failed] == ["a"]
    assert [one.container_id for one in pair.updates[0]] == ["a", "b"]


def test_updates_wait_for_configuration() -> None:
    """A plugin that is not configured yet cannot update anything."""
    pair = make()
    pair.plugin._connection.start()

    assert pair.peer.call("UpdateContainers", nri.UpdateContainersRequest()).status.code == FailedPrecondition.code
    assert pair.updates == []


def test_another_call_is_no_registration() -> None:
    """A plugin that asks for updates before it has registered is refused them, and is not used without a name."""
    pair = make(config=IMPATIENT)
    asking = threading.Thread(target=lambda: pair.peer.call("UpdateContainers", nri.UpdateContainersRequest()))
    asking.start()
    with pytest.raises(TimedOut, match="no registration"):
        pair.plugin.begin()
    asking.join(60)


def test_a_flood_of_updates_is_bounded() -> None:
    """No more than a few updates of one plugin run at once; the rest are refused, and events go on."""
    pair = make()
    pair.begin()
    pair.hold.clear()
    empty = nri.UpdateContainersRequest().SerializeToString()
    for _ in range(UPDATES_AT_ONCE):
        pair.peer.send("UpdateContainers", empty)

    assert pair.peer.call("UpdateContainers", nri.UpdateContainersRequest()).status.code == ResourceExhausted.code
    assert pair.plugin.ask(Event.START_CONTAINER, nri.StartContainerRequest()) is not None
    assert len(pair.updates) == UPDATES_AT_ONCE


@pytest.mark.parametrize(
    "junk",
    [
        struct.pack(">II", 2, 0xFFFFFFFF),
        struct.pack(">IIIIBB", 2, 14, 4, 1, 1, 0) + b"\xff\xff\xff\xff",
        b"\0" * 7,
        struct.pack(">IIIIBB", 2, 4096, 4 << 20, 1, 1, 0) + b"x" * 100,
    ],
    ids=["giant frame", "no request", "half a header", "half a message"],
)
def test_what_is_not_the_protocol_ends_the_connection(junk: bytes) -> None:
    """A frame that cannot be one, or a hang-up in its middle, ends the plugin and fails what it was asked."""
    pair = make(config=Nri(plugin_request_timeout=30))
    pair.begin()

    def send_junk(raw: bytes) -> None:
        pair.peer.theirs.sendall(junk)
        pair.peer.theirs.shutdown(1)

    pair.peer.answers["RunPodSandbox"] = send_junk

    with pytest.raises(Lost):
        pair.plugin.ask(Event.RUN_POD_SANDBOX, nri.RunPodSandboxRequest())
    pair.wait_for_end()


def test_other_connections_and_answers_to_nothing_are_passed_over() -> None:
    """Frames of unknown connections, answers nobody waits for, unknown methods and services change nothing."""
    pair = make()
    pair.begin()
    pair.peer.theirs.sendall(struct.pack(">II", 77, 5) + b"hello" + struct.pack(">II", 0, 0))
    pair.peer.theirs.sendall(mux.encode(mux.PLUGIN_SERVICE, struct.pack(">IIBB", 0, 9999, 2, 0)))
    pair.peer.theirs.sendall(mux.encode(mux.PLUGIN_SERVICE, struct.pack(">IIBB", 0, 9999, 3, 0)))

    assert pair.peer.call("Explode", nri.Empty()).status.code == 12
    assert pair.plugin.ask(Event.START_CONTAINER, nri.StartContainerRequest()) is not None


def test_a_request_beyond_the_limit_is_answered_and_not_kept() -> None:
    """A message longer than ttrpc allows is thrown away as it comes, and refused."""
    pair = make()
    pair.begin()
    size = MESSAGE_LIMIT + 1000
    pair.peer.theirs.sendall(struct.pack(">IIIIBB", 2, 10, size, 4001, 1, 0))
    for _ in range(0, size, 100_000):
        part = b"x" * min(100_000, size)
        size -= len(part)
        pair.peer.theirs.sendall(struct.pack(">II", 2, len(part)) + part)
        assert len(pair.plugin._connection._requests._buffer) < 1 << 20

    with pair.peer._came:
        assert pair.peer._came.wait_for(lambda: 4001 in pair.peer.replies, 60)
    assert pair.peer.replies[4001].status.code == ResourceExhausted.code
    assert pair.plugin.ask(Event.START_CONTAINER, nri.StartContainerRequest()) is not None


def test_a_plugin_that_does_not_read_is_disconnected() -> None:
    """A message that cannot be written within the request's time ends the connection."""
    pair, go = make(), threading.Event()
    pair.begin()
    pair.hasten()
    pair.peer.ours.settimeout(IMPATIENT.plugin_request_timeout)
    # The peer's only thread reads nothing meanwhile.
    pair.peer.answers["RunPodSandbox"] = lambda raw: nri.Empty() if go.wait(60) else None
    with pytest.raises(TimedOut):
        pair.plugin.ask(Event.RUN_POD_SANDBOX, nri.RunPodSandboxRequest())
    big = nri.StartContainerRequest(container=nri.Container(name="x" * 3_000_000))
    began = time.monotonic()

    with pytest.raises(Lost):
        pair.plugin.ask(Event.START_CONTAINER, big)
    assert time.monotonic() - began < 30
    go.set()
    pair.wait_for_end()


def test_a_process_is_ended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a plugin is dropped, its process is killed once: its number may be another's by then."""
    ended: list[object] = []
    monkeypatch.setattr(command, "end", ended.append)
    pair = make()
    process: Any = object()
    started = Plugin(pair.peer.ours, CONFIG, "1", lambda updates: [], lambda plugin: None, process=process)
    for _ in range(3):
        started.end_process()

    assert ended == [process]
    assert started.started_here
    pair.plugin.end_process()
    assert len(ended) == 1
