"""Limits, cgroup paths, OOM scores, devices, sysctls, annotations, the base runtime spec."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.annotations import passed_through
from sandbox_svc.oci.model import Device
from sandbox_svc.oci.resources import updated
from sandbox_svc.oci.spec import container_spec, sandbox_spec
from support.specs import TableHost, container_input, host_facts, sandbox_input


def plain() -> cri.ContainerConfig:
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), command=["true"])


def test_limits() -> None:
    """Every limit of the request stands in the spec; memory and swap together default to the memory limit."""
    config = plain()
    limits = config.linux.resources
    limits.cpu_shares, limits.cpu_quota, limits.cpu_period = 512, -1, 100000
    limits.cpuset_cpus, limits.memory_limit_in_bytes = "0-1", 1 << 20
    limits.unified["memory.high"] = "1000"
    found = container_spec(container_input(config=config))["linux"]["resources"]
    assert found["cpu"] == {"shares": 512, "quota": -1, "period": 100000, "cpus": "0-1"}
    assert found["memory"] == {"limit": 1 << 20, "swap": 1 << 20}
    assert found["unified"] == {"memory.high": "1000"}


def test_disabled_cgroups() -> None:
    """With disable_cgroup neither a limit nor a cgroup path is asked for; the OOM score, which is none, stays."""
    config, runtime = plain(), Runtime(disable_cgroup=True)
    config.linux.resources.cpu_shares, config.linux.resources.oom_score_adj = 512, 500
    request = container_input(config=config, runtime=runtime)
    request.sandbox_config.linux.cgroup_parent = "/kubepods/pod1"
    spec = container_spec(request)
    assert spec["linux"]["resources"].keys() == {"devices"}
    assert spec["process"]["oomScoreAdj"] == 500
    assert "cgroupsPath" not in spec["linux"]
    pod = sandbox_spec(sandbox_input(config=request.sandbox_config, runtime=runtime))
    assert "cpu" not in pod["linux"]["resources"]
    assert "cgroupsPath" not in pod["linux"]


def test_swap_only_where_it_is_counted() -> None:
    """Without swap accounting there is no swap limit."""
    config = plain()
    config.linux.resources.memory_limit_in_bytes = 5
    config.linux.resources.memory_swap_limit_in_bytes = 7
    found = container_spec(container_input(config=config, facts=host_facts(swap_accounting=False)))
    assert found["linux"]["resources"]["memory"] == {"limit": 5}
    assert container_spec(container_input(config=config))["linux"]["resources"]["memory"]["swap"] == 7


def test_huge_pages() -> None:
    """Huge page limits need the controller, unless its absence is tolerated; the option leaves them out."""
    config = plain()
    config.linux.resources.hugepage_limits.add(page_size="2MB", limit=4 << 20)
    on, off = Runtime(disable_hugetlb_controller=False), Runtime()
    found = container_spec(container_input(config=config, runtime=on))["linux"]["resources"]
    assert found["hugepageLimits"] == [{"pageSize": "2MB", "limit": 4 << 20}]
    assert "hugepageLimits" not in container_spec(container_input(config=config, runtime=off))["linux"]["resources"]
    missing = host_facts(hugetlb=False)
    container_spec(container_input(config=config, runtime=on, facts=missing))
    strict = Runtime(disable_hugetlb_controller=False, tolerate_missing_hugetlb_controller=False)
    with pytest.raises(FailedPrecondition, match="hugetlb"):
        container_spec(container_input(config=config, runtime=strict, facts=missing))


def test_huge_pages_of_an_update() -> None:
    """An update changes the limits of the page sizes that it names, under the same conditions as a creation."""
    wanted = cri.LinuxContainerResources()
    wanted.hugepage_limits.add(page_size="2MB", limit=8 << 20)
    on, before = Runtime(disable_hugetlb_controller=False), [{"pageSize": "1GB", "limit": 0}]
    found = updated({"hugepageLimits": before, "devices": []}, wanted, host_facts(), on)
    assert found == {"hugepageLimits": [*before, {"pageSize": "2MB", "limit": 8 << 20}], "devices": []}
    again = updated(found, cri.LinuxContainerResources(cpu_shares=2), host_facts(), on)
    assert again["hugepageLimits"] == found["hugepageLimits"]
    assert updated({}, wanted, host_facts(), Runtime()) == {}
    assert updated({}, wanted, host_facts(hugetlb=False), on) == {}


def test_impossible_limits_are_refused() -> None:
    """Negative shares and an OOM score out of range name their field."""
    config = plain()
    config.linux.resources.cpu_shares = -1
    with pytest.raises(InvalidArgument, match="cpu_shares"):
        container_spec(container_input(config=config))
    config.linux.resources.cpu_shares, config.linux.resources.oom_score_adj = 0, 1001
    with pytest.raises(InvalidArgument, match="oom_score_adj"):
        container_spec(container_input(config=config))


@pytest.mark.parametrize(
    ("restrict", "can", "wanted", "expected"),
    [(False, True, -500, -500), (True, True, -500, -10), (False, False, -500, -10), (True, True, 500, 500)],
)
def test_oom_score(restrict: bool, can: bool, wanted: int, expected: int) -> None:
    """A score below ours is raised to ours where lowering is forbidden or impossible."""
    config = plain()
    config.linux.resources.oom_score_adj = wanted
    facts = host_facts(can_lower_oom_score_adj=can, own_oom_score_adj=-10)
    runtime = Runtime(restrict_oom_score_adj=restrict)
    spec = container_spec(container_input(config=config, facts=facts, runtime=runtime))
    assert spec["process"]["oomScoreAdj"] == expected


def test_pause_yields() -> None:
    """The pause container has the least CPU share and is killed last."""
    spec = sandbox_spec(sandbox_input())
    assert spec["linux"]["resources"]["cpu"] == {"shares": 2}
    assert spec["process"]["oomScoreAdj"] == -998
    assert "/sys/devices/system/cpu/cpu0/thermal_throttle" in spec["linux"]["maskedPaths"]


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        ("", "/k8s.io/container"),
        ("/kubepods/pod1", "/kubepods/pod1/container"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:container"),
    ],
)
def test_cgroup_path(parent: str, expected: str) -> None:
    """A parent of systemd's gives slice, prefix and name; any other a path below it."""
    request = container_input()
    request.sandbox_config.linux.cgroup_parent = parent
    assert container_spec(request)["linux"]["cgroupsPath"] == expected


def test_systemd_without_a_parent() -> None:
    """Through systemd a pod without a parent is in system.slice: runtimes refuse a path there."""
    handler = RuntimeHandler(options={"SystemdCgroup": True})
    container, sandbox = container_input(), sandbox_input()
    for spec in (
        container_spec(replace(container, handler=handler)),
        sandbox_spec(replace(sandbox, handler=handler)),
    ):
        assert spec["linux"]["cgroupsPath"].startswith("system.slice:cri-containerd:")


def test_devices() -> None:
    """A device keeps its numbers under another name; a directory brings all below it; symlinks are followed."""
    null, ttys = Device("/dev/real", "c", 1, 3, 0o666), Device("/dev/bus/a/1", "c", 189, 0, 0o600, 0, 20)
    host = TableHost(nodes={"/dev/real": (null,), "/dev/bus": (ttys,)}, links={"/dev/link": "/dev/real"})
    config = plain()
    config.devices.add(host_path="/dev/link", container_path="/dev/mine", permissions="rw")
    config.devices.add(host_path="/dev/bus", container_path="/dev/usb", permissions="r")
    linux = container_spec(container_input(config=config, facts=host_facts(host=host)))["linux"]
    assert [(device["path"], device["major"], device["minor"]) for device in linux["devices"]] == [
        ("/dev/mine", 1, 3),
        ("/dev/usb/a/1", 189, 0),
    ]
    assert linux["resources"]["devices"][1:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": True, "type": "c", "major": 189, "minor": 0, "access": "r"},
    ]


def test_device_ownership() -> None:
    """device_ownership_from_security_context gives devices to the container's user and group."""
    host = TableHost(nodes={"/dev/d": (Device("/dev/d", "c", 1, 3, 0o660, 0, 44),)})
    config = plain()
    config.devices.add(host_path="/dev/d", container_path="/dev/d", permissions="rw")
    config.linux.security_context.run_as_user.value = 1000
    runtime = Runtime(device_ownership_from_security_context=True)
    spec = container_spec(container_input(config=config, facts=host_facts(host=host), runtime=runtime))
    assert (spec["linux"]["devices"][0]["uid"], spec["linux"]["devices"][0]["gid"]) == (1000, 44)


@pytest.mark.parametrize(("path", "permissions"), [("/dev/none", "rw"), ("/dev/d", "x"), ("/dev/d", "")])
def test_wrong_devices_are_refused(path: str, permissions: str) -> None:
    """What is no device, and permissions that are none, name the entry."""
    host = TableHost(nodes={"/dev/d": (Device("/dev/d", "c", 1, 3, 0o660),)})
    config = plain()
    config.devices.add(host_path=path, container_path="/dev/x", permissions=permissions)
    with pytest.raises(InvalidArgument, match=r"devices\[0\]"):
        container_spec(container_input(config=config, facts=host_facts(host=host)))


def test_sysctls() -> None:
    """The pod's sysctls win over our defaults, which options switch off."""
    request = sandbox_input()
    request.config.linux.sysctls["net.ipv4.ip_unprivileged_port_start"] = "80"
    assert sandbox_spec(request)["linux"]["sysctl"] == {
        "net.ipv4.ip_unprivileged_port_start": "80",
        "net.ipv4.ping_group_range": "0 2147483647",
    }
    off = Runtime(enable_unprivileged_ports=False, enable_unprivileged_icmp=False)
    assert "sysctl" not in sandbox_spec(sandbox_input(runtime=off))["linux"]


@pytest.mark.parametrize("name", ["kernel.panic", "vm.swappiness", "../etc/passwd", "", "net..x", "kernel.hostname"])
def test_sysctls_of_the_node_are_refused(name: str) -> None:
    """A sysctl that would change the node, or is none, is refused with its name."""
    request = sandbox_input()
    request.config.linux.sysctls[name] = "1"
    with pytest.raises(InvalidArgument, match="sysctls"):
        sandbox_spec(request)


def test_sysctls_of_shared_namespaces_are_refused() -> None:
    """On the node's network or IPC, a pod's sysctls would be the node's."""
    for name, field in (("net.core.somaxconn", "network"), ("kernel.sem", "ipc"), ("fs.mqueue.msg_max", "ipc")):
        request = sandbox_input()
        request.config.linux.sysctls[name] = "1"
        sandbox_spec(request)
        setattr(request.config.linux.security_context.namespace_options, field, cri.NODE)
        with pytest.raises(InvalidArgument, match="shares the node"):
            sandbox_spec(request)


def test_annotations_of_a_container() -> None:
    """containerd's set is there and cannot be forged; others pass only through the handler's patterns."""
    config = plain()
    config.metadata.name = "c"
    config.image.user_specified_image = "asked:1"
    config.annotations.update({"a.example/x": "1", "io.kubernetes.cri.sandbox-id": "forged", "b": "2"})
    handler = RuntimeHandler(container_annotations=("a.example/*", "io.kubernetes.cri.*"))
    image = {"config": {"Labels": {"io.kubernetes.cri.container-type": "sandbox", "label": "x"}}}
    found = container_spec(container_input(config=config, handler=handler, image_config=image))["annotations"]
    assert found == {
        "a.example/x": "1",
        "io.kubernetes.cri.container-name": "c",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.image-name": "asked:1",
        "io.kubernetes.cri.sandbox-id": "pod",
        "io.kubernetes.cri.sandbox-name": "p",
        "io.kubernetes.cri.sandbox-namespace": "n",
        "io.kubernetes.cri.sandbox-uid": "u",
    }


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("*", "a/b", False),
        ("a.b", "aXb", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        (r"\*", "*", True),
        (r"a\*", "ab", False),
        ("[", "[", False),
        ("a\\", "a", False),
        ("[]", "]", False),
    ],
)
def test_patterns_match_as_in_go(pattern: str, key: str, matches: bool) -> None:
    """Patterns are those of Go's path.Match; a malformed one matches nothing."""
    assert bool(passed_through({key: "1"}, [pattern])) is matches


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_pattern_is_survived(pattern: str, key: str) -> None:
    """No pattern of a configuration file breaks a request."""
    passed_through({key: ""}, [pattern])


def test_base_runtime_spec() -> None:
    """A handler's base spec keeps its rlimits; cgroup path, version and rootfs are ours."""
    base = {
        "ociVersion": "1.2.0",
        "process": {"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 9}], "cwd": "/x"},
        "root": {"path": "elsewhere"},
        "mounts": [{"destination": "/run", "type": "tmpfs"}, {"destination": "/keep", "type": "tmpfs"}],
        "linux": {"cgroupsPath": "/other", "namespaces": [{"type": "mount"}]},
    }
    host = TableHost(files={"/base.json": json.dumps(base).encode(), "/list.json": b"[]"})
    request = container_input(handler=RuntimeHandler(base_runtime_spec="/base.json"), facts=host_facts(host=host))
    spec = container_spec(request)
    assert spec["process"]["rlimits"] == base["process"]["rlimits"]  # type: ignore[index]
    assert (spec["root"]["path"], spec["linux"]["cgroupsPath"]) == ("rootfs", "/k8s.io/container")
    assert spec["ociVersion"] == "1.0.2"
    assert {"/keep", "/etc/hosts"} <= {mount["destination"] for mount in spec["mounts"]}
    assert "/run" not in {mount["destination"] for mount in spec["mounts"]}
    for path in ("/list.json", "/missing.json"):
        with pytest.raises(InvalidArgument, match=path):
            container_spec(container_input(handler=RuntimeHandler(base_runtime_spec=path), facts=host_facts(host=host)))


def test_proc_paths() -> None:
    """The request says what is masked; disable_proc_mount keeps the defaults instead."""
    config = plain()
    config.linux.security_context.masked_paths.append("/proc/kcore")
    linux = container_spec(container_input(config=config))["linux"]
    assert linux["maskedPaths"] == ["/proc/kcore"]
    assert "readonlyPaths" not in linux
    kept = container_spec(container_input(config=config, runtime=Runtime(disable_proc_mount=True)))["linux"]
    assert "/proc/keys" in kept["maskedPaths"]
    assert "/proc/sys" in kept["readonlyPaths"]
