"""Pods and containers as plugins see them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.nri import apply_linux, apply_process, apply_resources, convert, convert_resources, convert_spec
from sandbox_svc.store.records import ContainerRecord, Phase, Process, SandboxRecord

CONFIG = cri.ContainerConfig(
    metadata=cri.ContainerMetadata(name="app"),
    labels={"l": "1"},
    annotations={"mine": "config"},
    CDI_devices=[cri.CDIDevice(name="vendor.test/class=one")],
)
RECORD = ContainerRecord("c", "p", CONFIG, 11, Phase.PRESENT)
SPEC: dict[str, Any] = {
    "annotations": {"mine": "spec", "run.oci.seccomp_bpf_data": "AAAA", "other": "x"},
    "process": {"args": ["a"], "env": ["A=1"], "user": {"uid": 5, "gid": 6, "additionalGids": [7]}},
    "linux": {"cgroupsPath": "/pods/c", "namespaces": [{"type": "pid"}]},
}


def plain(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


def test_a_container() -> None:
    """The request's annotations count over the spec's; what is between us and crun is nobody's."""
    found = plain(convert.container(RECORD, SPEC))
    assert found == {
        "id": "c",
        "pod_sandbox_id": "p",
        "name": "app",
        "state": "CONTAINER_CREATED",
        "labels": {"l": "1"},
        "annotations": {"mine": "config", "other": "x"},
        "args": ["a"],
        "env": ["A=1"],
        "linux": {"namespaces": [{"type": "pid"}], "cgroups_path": "/pods/c"},
        "created_at": "11",
        "CDI_devices": [{"name": "vendor.test/class=one"}],
        "user": {"uid": 5, "gid": 6, "additional_gids": [7]},
    }


def test_names_that_are_no_text() -> None:
    """A device node may have any bytes for a name: plugins see the container all the same, and its end."""
    name = os.fsdecode(b"/dev/x\xff")
    spec = {**SPEC, "linux": {**SPEC["linux"], "devices": [{"path": name, "type": "c", "major": 1, "minor": 3}]}}
    seen = convert.container(RECORD, spec)
    assert [(one.path, one.major) for one in seen.linux.devices] == [("/dev/x?", 1)]
    assert list(seen.env) == ["A=1"]
    pause = convert.pod(SandboxRecord("p", cri.PodSandboxConfig(), "runc", "", 1), {"annotations": {"a": name}})
    assert pause.annotations["a"] == "/dev/x?"


@pytest.mark.parametrize(
    ("changes", "state", "pid"),
    [
        ({"phase": Phase.CREATING}, nri.CONTAINER_UNKNOWN, 0),
        ({"started_at": 5, "process": Process(9, 1, "b")}, nri.CONTAINER_RUNNING, 9),
        ({"started_at": 5, "finished_at": 6}, nri.CONTAINER_STOPPED, 0),
    ],
)
def test_states(changes: dict[str, Any], state: int, pid: int) -> None:
    """A container is unknown until it exists, and stopped once it has ended."""
    found = convert.container(replace(RECORD, **changes), {})
    assert (found.state, found.pid) == (state, pid)


def test_a_process_that_is_made_and_not_started() -> None:
    """Between create and start plugins see the process that waits."""
    assert convert.container(RECORD, SPEC, pid=44).pid == 44


def test_the_image_is_named_by_tag_and_digests() -> None:
    """The digest stands without its repository; an image without a tag goes by its reference."""
    record = replace(RECORD, image_id="sha256:c", image_digest="example.test/a@sha256:d", image_name="example.test/a:1")
    assert plain(convert.container(record, SPEC).image) == {
        "name": "example.test/a:1",
        "digest": "sha256:d",
        "config_digest": "sha256:c",
    }
    assert convert.container(replace(record, image_name=""), SPEC).image.name == "example.test/a@sha256:d"


def test_the_seccomp_profile_that_was_asked_for() -> None:
    """RuntimeDefault is number 0, and still said; no request says nothing."""
    config = cri.ContainerConfig()
    config.CopyFrom(CONFIG)
    config.linux.security_context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    linux = convert.container(replace(RECORD, config=config), SPEC).linux
    assert linux.HasField("seccomp_profile")
    assert linux.seccomp_profile.profile_type == nri.SecurityProfile.RUNTIME_DEFAULT
    assert not convert.container(RECORD, SPEC).linux.HasField("seccomp_profile")


def test_a_pod(tmp_path: Path) -> None:
    """The spec's annotations count over the request's; a network namespace that is gone is not shown."""
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="n", uid="u", namespace="ns"),
        annotations={"a": "config", "b": "config"},
        linux=cri.LinuxPodSandboxConfig(
            cgroup_parent="/pods", overhead=cri.LinuxContainerResources(memory_limit_in_bytes=5)
        ),
    )
    here = str(tmp_path)
    record = SandboxRecord(
        "p", config, "runc", "asked", 1, Phase.PRESENT, process=Process(3, 1, "b"), ips=("10.0.0.1",)
    )
    namespaces = [{"type": "network", "path": f"{here}/gone"}, {"type": "network", "path": here}, {"type": "ipc"}]
    spec = {
        "annotations": {"a": "spec"},
        "linux": {"cgroupsPath": "/pods/p", "namespaces": namespaces, "resources": {"cpu": {"shares": 2}}},
    }
    found = plain(convert.pod(record, spec))
    limit = {"value": "5"}
    zero: dict[str, Any] = {"shares": {}, "quota": {}, "period": {}}
    assert found == {
        "id": "p",
        "name": "n",
        "uid": "u",
        "namespace": "ns",
        "annotations": {"a": "spec", "b": "config"},
        "runtime_handler": "asked",
        "linux": {
            "pod_overhead": {"memory": {"limit": limit}, "cpu": zero},
            "cgroup_parent": "/pods",
            "cgroups_path": "/pods/p",
            "namespaces": [{"type": "network", "path": here}, {"type": "ipc"}],
            "resources": {"cpu": {"shares": {"value": "2"}}},
        },
        "pid": 3,
        "ips": ["10.0.0.1"],
    }


RESOURCES: dict[str, Any] = {
    "memory": {"limit": 9, "swap": 9, "kernelTCP": 0, "disableOOMKiller": True, "swappiness": 3},
    "cpu": {"shares": 2, "quota": -1, "realtimeRuntime": 7, "cpus": "0-1", "mems": "0"},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
    "unified": {"memory.high": "1"},
    "pids": {"limit": 5},
    "devices": [{"allow": True, "type": "c", "major": 1, "minor": 0, "access": "r"}, {"allow": False, "access": "rwm"}],
}


def test_limits_go_there_and_back() -> None:
    """What plugins see of a spec's limits is all of them: applied to an empty spec they are the same."""
    message = convert_resources.from_oci(RESOURCES)
    assert message is not None
    found: dict[str, Any] = {}
    apply_resources.limits(found, message, swap=True, hugepages=True)
    apply_resources.device_rules(found, message)
    assert found == RESOURCES


def test_a_spec_goes_there_and_back() -> None:
    """What plugins see of process and linux section is what they would write to get it."""
    spec: dict[str, Any] = {
        "process": {
            "oomScoreAdj": 0,
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
            "scheduler": {"policy": "SCHED_FIFO", "priority": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        },
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/x"}],
            "devices": [{"path": "/dev/a", "type": "c", "major": 1, "minor": 2, "fileMode": 0, "uid": 0, "gid": 3}],
            "sysctl": {"a": "b"},
            "netDevices": {"eth0": {"name": "x"}, "eth1": {}},
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 0,
                "architectures": ["SCMP_ARCH_X86"],
                "syscalls": [
                    {
                        "names": ["a"],
                        "action": "SCMP_ACT_ALLOW",
                        "errnoRet": 0,
                        "args": [{"index": 1, "value": 2, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
                    }
                ],
            },
            "intelRdt": {"closID": "", "schemata": [], "enableMonitoring": False},
        },
    }
    seen = nri.LinuxContainer(**convert_spec.linux(spec))
    wanted = nri.LinuxContainerAdjustment(
        devices=seen.devices,
        namespaces=seen.namespaces,
        sysctl=seen.sysctl,
        net_devices=seen.net_devices,
        oom_score_adj=seen.oom_score_adj,
        io_priority=seen.io_priority,
        scheduler=seen.scheduler,
        seccomp_policy=seen.seccomp_policy,
        rdt=seen.rdt,
    )
    made: dict[str, Any] = {"process": {}, "linux": {"namespaces": [], "resources": {}}}
    apply_process.oom_score(made["process"], wanted, lambda score: score)
    apply_process.io_priority(made["process"], wanted)
    apply_process.scheduler(made["process"], wanted)
    apply_linux.namespaces(made, wanted.namespaces)
    apply_linux.devices(made, wanted.devices)
    apply_linux.sysctls(made, wanted.sysctl)
    apply_linux.net_devices(made, wanted.net_devices)
    apply_linux.seccomp(made, wanted)
    apply_linux.rdt(made, wanted)
    del made["linux"]["resources"]
    assert made == spec


@given(
    st.builds(
        cri.LinuxContainerResources,
        cpu_shares=st.integers(0, 1 << 20),
        cpu_quota=st.integers(-1, 1 << 40),
        cpu_period=st.integers(0, 1 << 20),
        cpuset_cpus=st.sampled_from(["", "0-3"]),
        memory_limit_in_bytes=st.integers(0, 1 << 40),
        memory_swap_limit_in_bytes=st.integers(0, 1 << 40),
        unified=st.dictionaries(st.sampled_from(["a", "b"]), st.text(max_size=3)),
    )
)
def test_the_kubelet_s_limits_go_there_and_back(limits: cri.LinuxContainerResources) -> None:
    """A plugin that changes nothing hands back what the kubelet asked for."""
    assert convert_resources.to_cri(convert_resources.from_cri(limits)) == limits
