"""What plugins' wishes come to is what the protocol's own Go module makes of them, for any wishes."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd import nri_pb2 as nri
from conformance.build import build
from sandbox_svc.nri.keys import removal
from sandbox_svc.nri.merge import Creation
from sandbox_svc.nri.merge_updates import Updates
from sandbox_svc.nri.owners import Owners

pytestmark = pytest.mark.root

KEYS = st.sampled_from(["a", "b", "/c", "-a", "-b", "-/c"])
SET = st.sampled_from(["a", "b", "/c"])
VALUES = st.sampled_from(["", "1", "2"])
#: Containers: the one that is created or updated, and others.
IDS = st.sampled_from(["c2", "c3"])


def some(strategy: st.SearchStrategy[Any], most: int = 2) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=most)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def maps(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    """A map in which no key is only removed: what the Go module makes of that depends on the order of its maps."""
    keys = draw(st.sets(SET, max_size=2))
    made = {key: draw(values) for key in keys}
    for key in keys:
        if draw(st.booleans()):
            made[f"-{key}"] = draw(values)
    return made


NUMBER = st.fixed_dictionaries({"value": st.sampled_from(["0", "5"])})
FLAG = st.fixed_dictionaries({"value": st.booleans()})
WORD = st.fixed_dictionaries({"value": VALUES})
RESOURCES = optional(
    memory=optional(limit=NUMBER, reservation=NUMBER, swap=NUMBER, swappiness=NUMBER, use_hierarchy=FLAG),
    cpu=optional(shares=NUMBER, quota=NUMBER, period=NUMBER, realtime_period=NUMBER, cpus=VALUES, mems=VALUES),
    hugepage_limits=st.lists(
        st.fixed_dictionaries({"page_size": SET, "limit": st.sampled_from(["1", "2"])}),
        max_size=2,
        unique_by=lambda one: one["page_size"],
    ),
    unified=st.dictionaries(SET, VALUES, max_size=2),
    blockio_class=WORD,
    rdt_class=WORD,
)
CREATED = RESOURCES.map(lambda one: one | {"devices": [{"allow": True, "type": "c"}]} if one else one)
#: What says nothing when it is empty; an optional value that is there and empty is a zero.
HOLLOW = {"adjust", "hooks", "linux", "resources", "memory", "cpu", "rdt", "env", "devices", "hugepage_limits"}
PIDS = st.fixed_dictionaries({"limit": st.sampled_from(["0", "7"])})
ADJUST = optional(
    annotations=maps(VALUES),
    mounts=some(st.fixed_dictionaries({"destination": KEYS, "source": VALUES})),
    env=some(st.fixed_dictionaries({"key": KEYS, "value": VALUES})),
    args=some(st.sampled_from(["", "x", "y"])),
    hooks=optional(poststart=some(st.fixed_dictionaries({"path": SET})), prestart=some(st.just({"path": "/p"}))),
    rlimits=some(st.fixed_dictionaries({"type": SET, "hard": st.just("3")})),
    CDI_devices=some(st.fixed_dictionaries({"name": SET})),
    linux=optional(
        devices=some(st.fixed_dictionaries({"path": KEYS, "type": st.just("c")})),
        resources=st.one_of(CREATED, st.fixed_dictionaries({"pids": PIDS})),
        cgroups_path=VALUES,
        oom_score_adj=NUMBER,
        io_priority=st.just({"priority": 1}),
        seccomp_policy=st.just({"default_action": "x"}),
        namespaces=some(st.fixed_dictionaries({"type": KEYS, "path": VALUES})),
        sysctl=maps(VALUES),
        net_devices=maps(st.fixed_dictionaries({"name": VALUES})),
        scheduler=st.just({"nice": 1}),
        rdt=optional(clos_id=WORD, schemata=st.just({"value": ["s"]}), enable_monitoring=FLAG, remove=st.booleans()),
        memory_policy=st.just({"nodes": "0"}),
    ),
)
#: Where every update of the container itself is ignored, the Go module forgets the request too: c1's never are.
UPDATES = some(
    st.fixed_dictionaries(
        {"container_id": st.one_of(IDS, st.just("c1")), "linux": st.fixed_dictionaries({"resources": RESOURCES})},
        optional={"ignore_failure": st.booleans()},
    ).map(lambda one: one if one["container_id"] != "c1" else one | {"ignore_failure": False})
)
ANSWERS = st.lists(st.tuples(ADJUST, some(UPDATES, 1)), min_size=1, max_size=3)
CONTAINER = {
    "id": "c1",
    "args": ["/bin/x"],
    "env": ["a=0", "z=1"],
    "mounts": [{"destination": "/c"}],
    "annotations": {"a": "0"},
    "linux": {"devices": [{"path": "/c"}], "sysctl": {"a": "0"}, "namespaces": [{"type": "a"}]},
}


class Oracle:
    """The Go module, one question and one answer a line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, **question: Any) -> tuple[dict[str, Any] | None, str]:
        """Return the response, or None and the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        count = len(question["answers"])
        question["plugins"] = [{"Index": f"1{index}", "Name": "p"} for index in range(count)]
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer.get("response"), answer.get("error", "")


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """The Go module's side of the runtime."""
    program = build("nriplugin")["nriplugin"]
    with subprocess.Popen([program, "-merge"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Oracle(process)


def plain(message: Message) -> dict[str, Any]:
    """Return a message without its empty parts, in an order that does not depend on maps."""
    tree = _plain(json_format.MessageToDict(message, preserving_proto_field_name=True), "")
    assert isinstance(tree, dict)
    return tree


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        members = {name: _plain(member, name) for name, member in value.items()}
        return {name: member for name, member in members.items() if member or name not in HOLLOW}
    if isinstance(value, list):
        items = [_plain(item, key) for item in value]
        if key in ("env", "devices"):
            # The Go module forgets these removals.
            items = [i for i in items if not removal(i.get("key") or i.get("path") or "")[1]]
        if key == "hugepage_limits":
            items = list({item["page_size"]: item for item in items}.values())
        return sorted(items, key=json.dumps) if items and isinstance(items[0], dict) and key != "hooks" else items
    return value


def agree(theirs: dict[str, Any] | None, error: str, ours: Message | None, complaint: str, kind: type[Message]) -> None:
    """Both made the same of it, or both refused for the same reason."""
    if theirs is None:
        assert complaint, error
        # Whose two fields conflict first depends on the order of Go's maps.
        assert (
            error.split(" set ")[0].split("plugin")[-1].split("asked")[0]
            == (complaint.split(" set ")[0].split("plugin")[-1].split("asked")[0])
        ), (error, complaint)
    else:
        assert ours is not None, complaint
        expected = json_format.ParseDict(theirs, kind())
        assert plain(ours) == plain(expected)


@settings(max_examples=400)
@given(answers=ANSWERS)
def test_adjustments_are_merged_as_the_go_module_does(oracle: Oracle, answers: list[Any]) -> None:
    """CreateContainer: the same adjustment and updates, or the same conflict between the same two plugins."""
    messages = [{"adjust": adjust, "update": [one for part in updates for one in part]} for adjust, updates in answers]
    creation = Creation(
        json_format.ParseDict({"pod": {"id": "p"}, "container": CONTAINER}, nri.CreateContainerRequest())
    )
    response, complaint = None, ""
    try:
        for index, answer in enumerate(messages):
            creation.apply(json_format.ParseDict(answer, nri.CreateContainerResponse()), f"1{index}-p")
        response = creation.response()
    except FailedPrecondition as error:
        complaint = str(error)

    theirs, theirs_error = oracle.ask(create={"pod": {"id": "p"}, "container": CONTAINER}, answers=messages)

    agree(theirs, theirs_error, response, complaint, nri.CreateContainerResponse)


@settings(max_examples=200)
@given(answers=st.lists(UPDATES, min_size=1, max_size=3), requested=RESOURCES)
def test_updates_are_merged_as_the_go_module_does(oracle: Oracle, answers: list[Any], requested: Any) -> None:
    """UpdateContainer: the same resources for the container itself, and the same updates of others."""
    updates = Updates(Owners(), updating="c1", request=json_format.ParseDict(requested, nri.LinuxResources()))
    response, complaint = None, ""
    touched = any(one["container_id"] == "c1" for answer in answers for one in answer)
    try:
        for index, answer in enumerate(answers):
            parsed = json_format.ParseDict({"update": answer}, nri.UpdateContainerResponse())
            updates.apply(parsed.update, f"1{index}-p")
        response = nri.UpdateContainerResponse(update=updates.others)
        if touched:
            own = response.update.add(container_id="c1")
            own.linux.resources.CopyFrom(updates.requested)
    except FailedPrecondition as error:
        complaint = str(error)

    theirs, theirs_error = oracle.ask(
        update={"pod": {"id": "p"}, "container": CONTAINER, "linux_resources": requested},
        answers=[{"update": answer} for answer in answers],
    )

    agree(theirs, theirs_error, response, complaint, nri.UpdateContainerResponse)
