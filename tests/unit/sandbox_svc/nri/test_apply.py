"""Adjustments applied to OCI specs: what NRI's own generator makes of them, and what is refused."""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.containerd import nri_pb2 as nri
from sandbox_svc.nri.apply import Abilities, apply

SPEC: dict[str, Any] = {
    "process": {
        "args": ["app"],
        "env": ["PATH=/bin", "A=1", "B=2"],
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 10, "soft": 10}],
        "oomScoreAdj": 1,
    },
    "annotations": {"old": "1", "kept": "2"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev/shm", "type": "tmpfs"},
    ],
    "linux": {
        "namespaces": [{"type": "pid"}, {"type": "uts", "path": "/proc/1/ns/uts"}],
        "resources": {"devices": [{"allow": False, "access": "rwm"}], "cpu": {"shares": 2}},
        "cgroupsPath": "/pods/c",
    },
}


def score(wanted: int) -> int:
    if wanted > 1000:
        raise InvalidArgument("linux.resources.oom_score_adj: want -1000 to 1000")
    return max(wanted, 0)


ABLE = Abilities(
    inject_cdi=lambda spec, names: spec.setdefault("injected", []).extend(names),
    blockio_class=lambda name: {"weight": len(name)},
    propagation=lambda source: "shared" if source.startswith("/shared") else "private",
    oom_score=score,
)


def adjusted(adjustment: dict[str, Any], able: Abilities = ABLE) -> dict[str, Any]:
    """Return the spec with an adjustment applied that is written as protobuf's JSON."""
    spec = copy.deepcopy(SPEC)
    apply(spec, json_format.ParseDict(adjustment, nri.ContainerAdjustment()), able)
    return spec


@pytest.mark.parametrize("adjustment", [{"linux": {"netDevices": {"eth7": {}}}}, {"CDIDevices": [{"name": "a/b=c"}]}])
def test_a_runtime_that_knows_no_network_devices(adjustment: dict[str, Any]) -> None:
    """It would start the container without the device that a plugin, or a CDI device of its choice, gives it."""

    def inject(spec: dict[str, Any], names: Sequence[str]) -> None:
        spec["linux"]["netDevices"] = {"eth7": {"name": "net0"}}

    able = replace(ABLE, inject_cdi=inject, net_devices=False)
    with pytest.raises(FailedPrecondition, match="netDevices"):
        adjusted(adjustment, able)
    assert adjusted({"linux": {"netDevices": {"-eth7": {}}}}, able) == SPEC


@pytest.mark.parametrize(
    ("linux", "field", "lacks"),
    [
        ({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}, "memory_policy", {"memory_policy": False}),
        ({"scheduler": {"policy": "SCHED_BATCH"}}, "scheduler", {"scheduling": False}),
        ({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3}}, "io_priority", {"scheduling": False}),
    ],
)
def test_a_runtime_that_knows_no_policies(linux: dict[str, Any], field: str, lacks: dict[str, Any]) -> None:
    """It would start the container without what a plugin has set; to take away what is not there needs no runtime."""
    able = replace(ABLE, **lacks)
    with pytest.raises(FailedPrecondition, match=rf"linux\.{field}, which the OCI runtime does not know"):
        adjusted({"linux": linux}, able)
    assert adjusted({"linux": linux}) != SPEC
    taken = {"scheduler": {"policy": "SCHED_NONE"}, "ioPriority": {"class": "IOPRIO_CLASS_NONE"}}
    assert adjusted({"linux": taken}, able) == SPEC


def test_an_empty_adjustment_changes_nothing() -> None:
    """Plugins that listen and ask for nothing leave the spec as it was."""
    assert adjusted({}) == SPEC


def test_environment() -> None:
    """A variable keeps its place when it is changed, a removed one is gone, a new one comes last."""
    env = [{"key": "A", "value": "x=y"}, {"key": "-B"}, {"key": "NEW", "value": ""}, {"key": "-NONE"}]
    assert adjusted({"env": env})["process"]["env"] == ["PATH=/bin", "A=x=y", "NEW="]


def test_annotations_and_arguments() -> None:
    """Keys are set and removed; arguments are replaced whole."""
    spec = adjusted({"annotations": {"-old": "", "new": "3"}, "args": ["other", "-v"]})
    assert spec["annotations"] == {"kept": "2", "new": "3"}
    assert spec["process"]["args"] == ["other", "-v"]


def test_hooks_come_after_those_that_are_there() -> None:
    """Each kind of hook keeps its order."""
    spec = copy.deepcopy(SPEC)
    spec["hooks"] = {"poststop": [{"path": "/first"}]}
    hook = {"path": "/second", "args": ["second", "-x"], "env": ["A=1"], "timeout": {"value": "5"}}
    wanted = {"hooks": {"poststop": [hook], "createRuntime": [{"path": "/third"}]}}
    apply(spec, json_format.ParseDict(wanted, nri.ContainerAdjustment()), ABLE)
    assert spec["hooks"] == {
        "poststop": [
            {"path": "/first"},
            {"path": "/second", "args": ["second", "-x"], "env": ["A=1"], "timeout": 5},
        ],
        "createRuntime": [{"path": "/third"}],
    }


def test_mounts_are_replaced_removed_and_ordered() -> None:
    """Shallow places come before deep ones, whoever asked for them."""
    wanted = [
        {"destination": "/a/b/c", "type": "bind", "source": "/x", "options": ["ro"]},
        {"destination": "-/dev/shm"},
        {"destination": "/proc/", "type": "proc", "source": "other"},
        {"destination": "/a", "type": "tmpfs"},
    ]
    assert adjusted({"mounts": wanted})["mounts"] == [
        {"destination": "/a", "type": "tmpfs"},
        {"destination": "/proc/", "type": "proc", "source": "other"},
        {"destination": "/a/b/c", "type": "bind", "source": "/x", "options": ["ro"]},
    ]


@pytest.mark.parametrize(("option", "root"), [("rshared", "rshared"), ("rslave", "rslave"), ("rprivate", None)])
def test_the_rootfs_propagates_as_far_as_its_mounts(option: str, root: str | None) -> None:
    """Runtimes make the rootfs private unless the spec says otherwise."""
    mount = {"destination": "/a", "type": "bind", "source": "/shared/a", "options": ["rbind", option]}
    assert adjusted({"mounts": [mount]})["linux"].get("rootfsPropagation") == root


def test_devices_come_with_their_rules() -> None:
    """A node at a place that is taken replaces it; a block device may be made, too."""
    wanted = [
        {"path": "/dev/a", "type": "c", "major": "1", "minor": "3", "fileMode": {"value": 438}, "uid": {"value": 7}},
        {"path": "/dev/a", "type": "b", "major": "8", "minor": "0"},
    ]
    linux = adjusted({"linux": {"devices": wanted}})["linux"]
    assert linux["devices"] == [{"path": "/dev/a", "type": "b", "major": 8, "minor": 0}]
    assert linux["resources"]["devices"][1:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
    ]


def test_limits() -> None:
    """What is said is set; memory without a word about swap gets none; the rest stays."""
    resources = {
        "cpu": {"quota": {"value": "-1"}, "cpus": "0-1", "realtimePeriod": {"value": "5"}},
        "memory": {"limit": {"value": "100"}, "reservation": {"value": "50"}, "disableOomKiller": {"value": True}},
        "hugepageLimits": [{"pageSize": "2MB", "limit": "4"}],
        "unified": {"memory.high": "90"},
        "pids": {"limit": "7"},
        "devices": [{"allow": True, "type": "c", "major": {"value": "5"}, "access": "r"}],
        "blockioClass": {"value": "gold"},
        "rdtClass": {"value": "silver"},
    }
    linux = adjusted({"linux": {"resources": resources}})["linux"]
    assert linux["resources"] == {
        "cpu": {"shares": 2, "quota": -1, "cpus": "0-1", "realtimePeriod": 5},
        "memory": {"limit": 100, "swap": 100, "reservation": 50, "disableOOMKiller": True},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
        "unified": {"memory.high": "90"},
        "pids": {"limit": 7},
        "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 5, "access": "r"}],
        "blockIO": {"weight": 4},
    }
    assert linux["intelRdt"] == {"closID": "silver"}


def test_limits_that_the_node_has_no_groups_for() -> None:
    """They are left out, as the kubelet's are."""
    able = Abilities(
        ABLE.inject_cdi, ABLE.blockio_class, ABLE.propagation, score, swap_accounting=False, hugepages=False
    )
    resources = {
        "memory": {"limit": {"value": "100"}, "swap": {"value": "200"}},
        "hugepageLimits": [{"pageSize": "2MB", "limit": "4"}],
    }
    found = adjusted({"linux": {"resources": resources}}, able)["linux"]["resources"]
    assert found["memory"] == {"limit": 100}
    assert "hugepageLimits" not in found


def test_the_process() -> None:
    """Priorities, scores and limits; one of a kind that is there is replaced, as runtimes refuse two."""
    spec = adjusted(
        {
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": "20", "soft": "5"}, {"type": "RLIMIT_CORE"}],
            "linux": {
                "oomScoreAdj": {"value": "-500"},
                "ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 1},
                "scheduler": {"policy": "SCHED_DEADLINE", "runtime": "1", "flags": ["SCHED_FLAG_RECLAIM"]},
            },
        }
    )
    assert spec["process"] == {
        **SPEC["process"],
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "hard": 20, "soft": 5},
            {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
        ],
        "oomScoreAdj": 0,
        "ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 1},
        "scheduler": {"policy": "SCHED_DEADLINE", "runtime": 1, "flags": ["SCHED_FLAG_RECLAIM"]},
    }


def test_the_linux_section() -> None:
    """Namespaces, parameters, devices of the network, memory policy, RDT, and the devices of CDI."""
    spec = adjusted(
        {
            "CDIDevices": [{"name": "vendor.test/class=one"}],
            "linux": {
                "cgroupsPath": "pods.slice:prefix:name",
                "namespaces": [{"type": "-pid"}, {"type": "uts"}, {"type": "network", "path": "/run/netns/x"}],
                "sysctl": {"kernel.a": "1"},
                "netDevices": {"eth7": {"name": "net0"}, "eth8": {}, "-eth9": {}},
                "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-1,3", "flags": ["MPOL_F_STATIC_NODES"]},
                "rdt": {
                    "closId": {"value": "a"},
                    "schemata": {"value": ["L3:0=f"]},
                    "enableMonitoring": {"value": True},
                },
            },
        }
    )
    assert spec["injected"] == ["vendor.test/class=one"]
    assert spec["linux"] == {
        **SPEC["linux"],
        "cgroupsPath": "pods.slice:prefix:name",
        "namespaces": [{"type": "uts"}, {"type": "network", "path": "/run/netns/x"}],
        "sysctl": {"kernel.a": "1"},
        "netDevices": {"eth7": {"name": "net0"}, "eth8": {}},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-1,3", "flags": ["MPOL_F_STATIC_NODES"]},
        "intelRdt": {"closID": "a", "schemata": ["L3:0=f"], "enableMonitoring": True},
    }


def test_what_can_be_taken_away() -> None:
    """Class NONE, policy NONE, an empty class and RDT's remove clear what a spec has."""
    spec = copy.deepcopy(SPEC)
    spec["process"] |= {"ioPriority": {"class": "IOPRIO_CLASS_BE"}, "scheduler": {"policy": "SCHED_BATCH"}}
    spec["linux"] |= {"intelRdt": {"closID": "x"}}
    spec["linux"]["resources"]["blockIO"] = {"weight": 1}
    wanted = {
        "linux": {
            "ioPriority": {"class": "IOPRIO_CLASS_NONE"},
            "scheduler": {"policy": "SCHED_NONE"},
            "rdt": {"remove": True},
            "resources": {"blockioClass": {"value": ""}},
        }
    }
    apply(spec, json_format.ParseDict(wanted, nri.ContainerAdjustment()), ABLE)
    assert spec == SPEC


def test_a_seccomp_policy_replaces_the_profile() -> None:
    """Every member has its place in linux.seccomp."""
    policy = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrno": {"value": 38},
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/listener",
        "listenerMetadata": "m",
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": {"value": 1},
                "args": [{"index": 0, "value": "7", "valueTwo": "8", "op": "SCMP_CMP_MASKED_EQ"}],
            },
        ],
    }
    assert adjusted({"linux": {"seccompPolicy": policy}})["linux"]["seccomp"] == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/listener",
        "listenerMetadata": "m",
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 1,
                "args": [{"index": 0, "value": 7, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"}],
            },
        ],
    }


@pytest.mark.parametrize(
    ("adjustment", "complaint"),
    [
        ({"env": [{"key": "A=B"}]}, "env: 'A=B' is no name of a variable"),
        ({"env": [{"key": "-"}]}, "env: '-' is no name of a variable"),
        ({"annotations": {"-": ""}}, "annotations: an entry without a name"),
        ({"args": ["a\0b"]}, r"NRI adjustment.args contains a NUL byte"),
        ({"hooks": {"prestart": [{"path": "sh"}]}}, "hooks.prestart: path is 'sh', expected an absolute path"),
        ({"hooks": {"prestart": [{"path": "/x", "timeout": {}}]}}, "hooks.prestart: timeout is 0"),
        ({"mounts": [{"destination": "-a"}]}, "mounts: destination is 'a', expected an absolute path"),
        ({"mounts": [{"destination": "/a", "source": "/x", "options": ["rslave"]}]}, "/x is on a private mount"),
        ({"rlimits": [{"type": "NOFILE"}]}, "rlimits: type is 'NOFILE', expected RLIMIT_"),
        ({"rlimits": [{"type": "RLIMIT_CORE", "soft": "2", "hard": "1"}]}, "soft 2 above hard 1"),
        ({"linux": {"devices": [{"path": "dev", "type": "c"}]}}, "linux.devices: path is 'dev'"),
        ({"linux": {"devices": [{"path": "/dev/x", "type": "z"}]}}, "type of /dev/x: 'z', expected one of b, c, u, p"),
        ({"linux": {"cgroupsPath": "/"}}, "cgroups_path: '/' is the root of the hierarchy"),
        ({"linux": {"cgroupsPath": "a/../../b"}}, "cgroups_path: cgroup path"),
        ({"linux": {"oomScoreAdj": {"value": "2000"}}}, "oom_score_adj: want -1000 to 1000"),
        ({"linux": {"ioPriority": {"class": 9}}}, "io_priority.class: 9 is no IOPrioClass"),
        ({"linux": {"namespaces": [{"type": "net"}]}}, "namespaces: type: 'net', expected one of network, pid"),
        ({"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "all"}}}, "memory_policy.nodes: 'all'"),
        ({"linux": {"resources": {"hugepageLimits": [{"limit": "1"}]}}}, "hugepage_limits: page_size is empty"),
    ],
)
def test_what_can_never_be_applied_names_the_field(adjustment: dict[str, Any], complaint: str) -> None:
    """The plugin's author reads the field, the value and what was expected."""
    with pytest.raises(FailedPrecondition, match=complaint):
        adjusted(adjustment)


@given(st.binary(max_size=300))
def test_no_bytes_of_a_plugin_crash_it(data: bytes) -> None:
    """Whatever message a plugin's bytes are, it is applied or refused."""
    adjustment = nri.ContainerAdjustment()
    try:
        adjustment.ParseFromString(data)
    except Exception:
        return
    with contextlib.suppress(FailedPrecondition):
        apply(copy.deepcopy(SPEC), adjustment, ABLE)
