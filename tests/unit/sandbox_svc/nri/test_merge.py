"""Adjustments of several plugins become one, and two plugins never set the same."""

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.containerd.nri_pb2 import Field
from sandbox_svc.nri.merge import Creation
from sandbox_svc.nri.merge_updates import Updates
from sandbox_svc.nri.owners import Owners


def creation(**container: Any) -> Creation:
    request = nri.CreateContainerRequest(pod=nri.PodSandbox(id="p"))
    json_format.ParseDict({"id": "c", **container}, request.container)
    return Creation(request)


def answer(**adjust: Any) -> nri.CreateContainerResponse:
    return json_format.ParseDict({"adjust": adjust}, nri.CreateContainerResponse())


def tree(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def test_the_next_plugin_sees_what_the_last_one_did() -> None:
    """What a plugin sets, replaces and removes is so in the container that the next one is shown."""
    made = creation(env=["A=1", "B=2"], mounts=[{"destination": "/x"}, {"destination": "/y"}], annotations={"k": "v"})

    made.apply(
        answer(
            env=[{"key": "-A"}, {"key": "B", "value": "3"}, {"key": "C", "value": ""}],
            mounts=[{"destination": "-/x"}, {"destination": "/y", "source": "/new"}],
            annotations={"-k": "", "n": "1"},
            args=["/bin/other"],
            hooks={"poststart": [{"path": "/h"}]},
            linux={
                "resources": {"memory": {"limit": {"value": "0"}}, "cpu": {"cpus": "0-1"}},
                "namespaces": [{"type": "network", "path": "/ns"}],
                "oom_score_adj": {"value": "5"},
            },
        ),
        "10-a",
    )

    container = made.request.container
    assert list(container.env) == ["B=3", "C="]
    assert tree(container)["mounts"] == [{"destination": "/y", "source": "/new"}]
    assert dict(container.annotations) == {"n": "1"}
    assert list(container.args) == ["/bin/other"]
    assert tree(container.hooks) == {"poststart": [{"path": "/h"}]}
    assert tree(container.linux) == {
        "resources": {"memory": {"limit": {}}, "cpu": {"cpus": "0-1"}},
        "namespaces": [{"type": "network", "path": "/ns"}],
        "oom_score_adj": {"value": "5"},
    }


def test_removals_reach_the_result() -> None:
    """What a plugin removes is marked in the result, also where nothing replaces it."""
    made = creation(env=["A=1"])

    made.apply(
        answer(
            env=[{"key": "-A"}],
            mounts=[{"destination": "-/x"}],
            annotations={"-k": ""},
            linux={"devices": [{"path": "-/dev/x"}], "sysctl": {"-s": ""}, "net_devices": {"-e": {}}},
        ),
        "10-a",
    )

    assert tree(made.adjust) == {
        "env": [{"key": "-A"}],
        "mounts": [{"destination": "-/x"}],
        "annotations": {"-k": ""},
        "linux": {"devices": [{"path": "-/dev/x"}], "sysctl": {"-s": ""}, "net_devices": {"-e": {}}},
    }


def test_a_later_removal_takes_back_an_earlier_plugins_wish() -> None:
    """A plugin that removes what one before it set leaves the removal alone in the result."""
    made = creation()
    made.apply(answer(env=[{"key": "A", "value": "1"}], annotations={"k": "v"}, mounts=[{"destination": "/x"}]), "10-a")

    made.apply(answer(env=[{"key": "-A"}], annotations={"-k": ""}, mounts=[{"destination": "-/x"}]), "20-b")

    assert tree(made.adjust) == {
        "env": [{"key": "-A"}],
        "annotations": {"-k": ""},
        "mounts": [{"destination": "-/x"}],
    }


@pytest.mark.parametrize(
    ("wish", "what"),
    [
        ({"annotations": {"k": "v"}}, "Annotations k"),
        ({"mounts": [{"destination": "/x"}]}, "Mounts /x"),
        ({"env": [{"key": "A", "value": "1"}]}, "Env A"),
        ({"args": ["x"]}, "Args"),
        ({"rlimits": [{"type": "RLIMIT_NOFILE"}]}, "Rlimits RLIMIT_NOFILE"),
        ({"CDI_devices": [{"name": "v/c=d"}]}, "CdiDevices v/c=d"),
        ({"linux": {"devices": [{"path": "/dev/x"}]}}, "Devices /dev/x"),
        ({"linux": {"resources": {"memory": {"limit": {"value": "0"}}}}}, "MemLimit"),
        ({"linux": {"resources": {"cpu": {"mems": "0"}}}}, "CPUSetMems"),
        ({"linux": {"resources": {"pids": {"limit": "1"}}}}, "PidsLimit"),
        ({"linux": {"resources": {"unified": {"memory.high": "1"}}}}, "CgroupsUnified memory.high"),
        ({"linux": {"resources": {"hugepage_limits": [{"page_size": "2MB"}]}}}, "HugepageLimits 2MB"),
        ({"linux": {"cgroups_path": "/x"}}, "CgroupsPath"),
        ({"linux": {"oom_score_adj": {}}}, "OomScoreAdj"),
        ({"linux": {"io_priority": {}}}, "IoPriority"),
        ({"linux": {"seccomp_policy": {}}}, "SeccompPolicy"),
        ({"linux": {"namespaces": [{"type": "-network"}]}}, "Namespace network"),
        ({"linux": {"sysctl": {"a": "b"}}}, "Sysctl a"),
        ({"linux": {"net_devices": {"eth0": {"name": "x"}}}}, "LinuxNetDevices eth0"),
        ({"linux": {"scheduler": {}}}, "LinuxSched"),
        ({"linux": {"rdt": {"clos_id": {}}}}, "RdtClosID"),
        ({"linux": {"memory_policy": {}}}, "MemoryPolicy"),
    ],
)
def test_two_plugins_cannot_set_the_same(wish: dict[str, Any], what: str) -> None:
    """A second plugin that sets what one has set is refused, with both names and the field."""
    made = creation()
    made.apply(answer(**wish), "10-a")

    with pytest.raises(FailedPrecondition) as caught:
        made.apply(answer(**wish), "20-b")

    assert str(caught.value) == f'NRI plugins "20-b" and "10-a" both tried to set {what}'


def test_remove_and_set_takes_over() -> None:
    """A plugin may set what another one has set if it removes it in the same breath, and a third one may not."""
    made = creation()
    made.apply(answer(env=[{"key": "A", "value": "1"}], args=["a"]), "10-a")
    made.apply(answer(env=[{"key": "-A"}, {"key": "A", "value": "2"}], args=["", "b"]), "20-b")

    assert tree(made.adjust) == {"env": [{"key": "A", "value": "2"}], "args": ["b"]}
    with pytest.raises(FailedPrecondition, match='"30-c" and "20-b"'):
        made.apply(answer(env=[{"key": "A", "value": "3"}]), "30-c")


def test_hooks_of_all_plugins_are_run() -> None:
    """Hooks never conflict: they are appended, and every plugin is named as an owner."""
    made = creation()
    made.apply(answer(hooks={"prestart": [{"path": "/1"}]}), "10-a")
    made.apply(answer(hooks={"prestart": [{"path": "/2"}]}), "20-b")

    assert tree(made.adjust.hooks) == {"prestart": [{"path": "/1"}, {"path": "/2"}]}
    assert made.owners.owner("c", Field.OciHooks) == "10-a,20-b"
    assert made.owners.message().owners["c"].simple[Field.OciHooks] == "10-a,20-b"


def test_the_callers_message_stays_as_it_was() -> None:
    """Merging changes a copy of the request."""
    request = nri.CreateContainerRequest(container=nri.Container(id="c", env=["A=1"]))
    Creation(request).apply(answer(env=[{"key": "A", "value": "2"}]), "10-a")

    assert request == nri.CreateContainerRequest(container=nri.Container(id="c", env=["A=1"]))


KEYS = st.sampled_from("abcdef")
WISHES = st.lists(st.dictionaries(KEYS, st.sampled_from("12"), max_size=3), min_size=1, max_size=4)


@given(wishes=WISHES, order=st.randoms(use_true_random=False))
def test_without_conflict_the_order_of_plugins_does_not_matter(wishes: list[dict[str, str]], order: Any) -> None:
    """Plugins that set different things come to the same in any order; two that set one thing never do, in any."""
    shared = len(set().union(*wishes)) != sum(len(wish) for wish in wishes)
    answers = [
        answer(
            annotations=wish,
            env=[{"key": key, "value": value} for key, value in wish.items()],
            linux={"sysctl": wish, "resources": {"unified": wish}},
        )
        for wish in wishes
    ]
    shuffled = list(range(len(answers)))
    order.shuffle(shuffled)

    outcomes: list[Any] = []
    for indices in (range(len(answers)), shuffled):
        made = creation()
        try:
            for index in indices:
                made.apply(answers[index], f"{index}0-p")
        except FailedPrecondition:
            outcomes.append(None)
        else:
            adjust = tree(made.adjust)
            adjust["env"] = sorted(adjust.get("env", []), key=lambda pair: pair["key"])
            outcomes.append((adjust, made.owners.message().SerializeToString(deterministic=True)))

    assert outcomes[0] == outcomes[1]
    assert (outcomes[0] is None) == shared


def update(target: str, ignore: bool = False, **resources: Any) -> nri.ContainerUpdate:
    return json_format.ParseDict(
        {"container_id": target, "ignore_failure": ignore, "linux": {"resources": resources}}, nri.ContainerUpdate()
    )


def test_updates_of_one_container_become_one() -> None:
    """Several plugins' updates of a container are one update, whose failure counts if it counts for one of them."""
    updates = Updates(Owners())
    updates.apply([update("x", True, cpu={"cpus": "0"})], "10-a")
    updates.apply([update("x", False, memory={"limit": {"value": "5"}}), update("y", True)], "20-b")

    assert [tree(one) for one in updates.others] == [
        {"container_id": "x", "linux": {"resources": {"memory": {"limit": {"value": "5"}}, "cpu": {"cpus": "0"}}}},
        {"container_id": "y", "linux": {"resources": {}}, "ignore_failure": True},
    ]


def test_a_container_cannot_be_updated_while_it_is_created() -> None:
    """An update of the container that is being created is refused: the adjustment is its place."""
    made = creation()

    with pytest.raises(FailedPrecondition, match="container c during its creation"):
        made.apply(nri.CreateContainerResponse(update=[update("c")]), "10-a")


def test_the_requested_resources_carry_the_plugins_changes() -> None:
    """An update starts from what was asked for, and each plugin changes that."""
    asked = json_format.ParseDict({"cpu": {"shares": {"value": "2"}, "cpus": "0"}}, nri.LinuxResources())
    updates = Updates(Owners(), updating="c", request=asked)
    updates.apply([update("c", cpu={"cpus": "1"})], "10-a")
    updates.apply([update("c", pids={"limit": "7"}), update("x", cpu={"mems": "0"})], "20-b")

    assert tree(updates.requested) == {"cpu": {"shares": {"value": "2"}, "cpus": "1"}, "pids": {"limit": "7"}}
    assert [one.container_id for one in updates.others] == ["x"]
    assert tree(asked) == {"cpu": {"shares": {"value": "2"}, "cpus": "0"}}


def test_a_conflict_that_may_be_ignored_drops_its_update() -> None:
    """An update that may fail is dropped whole where it conflicts; one that may not fails the request."""
    updates = Updates(Owners())
    updates.apply([update("x", cpu={"cpus": "0"})], "10-a")
    updates.apply([update("x", True, cpu={"cpus": "1"}, memory={"limit": {"value": "1"}})], "20-b")

    assert tree(updates.others[0])["linux"] == {"resources": {"cpu": {"cpus": "0"}}}
    with pytest.raises(FailedPrecondition, match="CPUSetCPUs"):
        updates.apply([update("x", cpu={"cpus": "1"})], "30-c")
