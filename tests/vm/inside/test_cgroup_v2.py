"""Pods on control groups of version 2, with each driver and each runtime."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.crictl import Crictl
from support.stack import Stack

pytestmark = pytest.mark.root

ROOT = Path("/sys/fs/cgroup")
MIB = 1 << 20
SYSTEMD = """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.sdrunc.options]
BinaryName = "/usr/sbin/runc"
SystemdCgroup = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.sdcrun.options]
BinaryName = "/usr/bin/crun"
SystemdCgroup = true
"""
LIMITS = {
    "cpu_shares": 512,
    "cpu_quota": 50_000,
    "cpu_period": 100_000,
    "memory_limit_in_bytes": 64 * MIB,
    "unified": {"memory.high": str(60 * MIB), "pids.max": "50"},
}


@dataclass
class Node:
    """A stack with one driver and runtime as its default."""

    stack: Stack
    crictl: Crictl
    systemd: bool
    registry: str
    directory: Path

    def parent(self, name: str) -> str:
        """Return a pod's cgroup_parent as the kubelet writes it for this driver."""
        return f"vmtest-{name}.slice" if self.systemd else f"/vmtest/{name}"

    def group(self, name: str, id: str = "") -> Path:
        """Return the directory of a pod's group, or of a container's in it.

        crun puts a systemd container's processes and limits one group deeper, into its scope's `container`.
        """
        pod = ROOT / (f"vmtest.slice/vmtest-{name}.slice" if self.systemd else f"vmtest/{name}")
        if not id:
            return pod
        group = pod / (f"cri-containerd-{id}.scope" if self.systemd else id)
        return group / "container" if (group / "container").is_dir() else group

    def pod(self, name: str) -> tuple[str, str]:
        """Run a pod and return its id and configuration file."""
        metadata = {"name": name, "uid": f"uid-{name}", "namespace": "default", "attempt": 0}
        linux = {"cgroup_parent": self.parent(name)}
        config = {"metadata": metadata, "log_directory": str(self.directory / name), "linux": linux}
        file = self.crictl.file(f"{name}.json", config)
        return self.crictl("runp", file), file

    def container(self, pod: tuple[str, str], name: str, command: str, **resources: object) -> str:
        """Create and start a container."""
        config = {
            "metadata": {"name": name},
            "image": {"image": f"{self.registry}/busybox:1"},
            "command": ["sh", "-c", command],
            "log_path": f"{name}.log",
            "linux": {"resources": resources},
        }
        container = self.crictl("create", pod[0], self.crictl.file(f"{name}.json", config), pod[1])
        return self.crictl("start", container)

    def wait_exited(self, container: str, timeout: float = 60) -> dict[str, Any]:
        """Return a container's status once it has exited."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status: dict[str, Any] = self.crictl.json("inspect", container)["status"]
            if status["state"] == "CONTAINER_EXITED":
                return status
            time.sleep(0.2)
        raise AssertionError(f"{container} still runs")


@pytest.fixture(params=["runc", "crun", "sdrunc", "sdcrun"], scope="module")
def node(request: pytest.FixtureRequest, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One stack for each pair, the image pulled."""
    directory = tmp_path_factory.mktemp("node")
    with Stack(registry, default=request.param, more=SYSTEMD) as stack:
        crictl = Crictl(stack.address, directory)
        crictl("pull", f"{registry}/busybox:1")
        yield Node(stack, crictl, request.param.startswith("sd"), registry, directory)


def content(path: Path) -> str:
    return path.read_text().strip()


def units(pattern: str) -> list[str]:
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", pattern]
    listing = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    return [line.split()[0] for line in listing.splitlines()]


def test_the_driver_is_told(node: Node) -> None:
    """RuntimeConfig names the driver of the default runtime, so that the kubelet takes the same."""
    answer = node.stack.runtime_service().RuntimeConfig(cri.RuntimeConfigRequest(), timeout=10)
    assert answer.linux.cgroup_driver == (cri.SYSTEMD if node.systemd else cri.CGROUPFS)


def test_limits_statistics_and_removal(node: Node) -> None:
    """Limits become version 2 files, an update changes them, statistics are read from them, and nothing stays."""
    pod = node.pod("limits")
    container = node.container(pod, "main", "while :; do :; done", **LIMITS)
    group = node.group("limits", container)

    assert content(node.group("limits", pod[0]) / "cgroup.procs").split()
    assert content(group / "cgroup.procs").split()
    assert content(group / "cpu.max") == "50000 100000"
    # 512 shares of 2 to 262144 on the scale of 1 to 10000.
    assert content(group / "cpu.weight") == "20"
    assert content(group / "memory.max") == str(64 * MIB)
    assert content(group / "memory.high") == str(60 * MIB)
    assert content(group / "pids.max") == "50"
    if (group / "memory.swap.max").exists():
        assert content(group / "memory.swap.max") == "0"
    if node.systemd:
        assert f"cri-containerd-{container}.scope" in units("cri-containerd-*.scope")

    assert node.crictl("exec", "-s", container, "cat", "/proc/self/cgroup") == "0::/"
    assert node.crictl("exec", "-s", container, "cat", "/sys/fs/cgroup/memory.max") == str(64 * MIB)
    assert node.crictl.run("exec", "-s", container, "mkdir", "/sys/fs/cgroup/x", check=False).returncode != 0

    time.sleep(2)
    (stats,) = node.crictl.json("stats", container)["stats"]
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 300_000_000
    assert 0 < int(stats["memory"]["workingSetBytes"]["value"]) < 64 * MIB
    assert 0 < int(stats["memory"]["availableBytes"]["value"]) < 64 * MIB
    (podstats,) = node.crictl.json("statsp", "--id", pod[0])["stats"]
    linux = podstats["linux"]
    assert int(linux["cpu"]["usageCoreNanoSeconds"]["value"]) >= int(stats["cpu"]["usageCoreNanoSeconds"]["value"])
    assert int(linux["memory"]["workingSetBytes"]["value"]) > 0
    assert int(linux["process"]["processCount"]["value"]) >= 2
    assert [one["attributes"]["id"] for one in linux["containers"]] == [container]
    # Half a processor, however long a period the two readings span.
    used = [float(line.split()[1]) for line in content(group / "cpu.stat").splitlines() if "nr_throttled" in line]
    assert used[0] > 0

    node.crictl("update", "--cpu-quota", "80000", "--memory", str(96 * MIB), container)
    assert content(group / "cpu.max") == "80000 100000"
    assert content(group / "memory.max") == str(96 * MIB)
    assert content(group / "pids.max") == "50"

    node.crictl("stop", "-t", "1", container)
    # The shell is not the first process of its pid namespace, that is the pod's: SIGTERM ends it.
    assert node.wait_exited(container)["exitCode"] == 143
    node.crictl("rm", container)
    assert not group.exists()
    node.crictl("stopp", pod[0])
    node.crictl("rmp", pod[0])
    assert not list(node.group("limits").glob("*/"))
    if node.systemd:
        assert units("cri-containerd-*.scope") == []


#: What version 2 keeps no count of: the most huge pages there ever were.
ABSENT = {"container_hugetlb_max_usage_bytes"}


def test_metrics_pressure_and_swap(node: Node, swap: None) -> None:
    """Every metric that is described comes, the pressure group among them; statistics have pressure and swap."""
    pod = node.pod("metrics")
    # 40 MB held by a process that may have 24 MB of memory, turned over and over; a second one wants all processors.
    script = "seq 1 20000 > /file; sync; (head -c 40000000 /dev/zero; sleep 1000) | tail -n 1 & while :; do :; done"
    limits = {"memory_limit_in_bytes": 24 * MIB, "memory_swap_limit_in_bytes": 88 * MIB, "cpu_quota": 50_000}
    container = node.container(pod, "main", script, cpu_period=100_000, **limits)
    group = node.group("metrics", container)
    assert content(group / "memory.swap.max") == str(64 * MIB)
    deadline = time.monotonic() + 60
    while int(content(group / "memory.swap.current")) < 8 * MIB:
        assert time.monotonic() < deadline, content(group / "memory.stat")
        time.sleep(0.5)

    runtime = node.stack.runtime_service()
    request = cri.ListMetricDescriptorsRequest()
    keys = {
        one.name: len(one.label_keys)
        for one in runtime.ListMetricDescriptors(request, timeout=60, wait_for_ready=True).descriptors
    }
    (found,) = runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest(), timeout=20).pod_metrics
    (inner,) = found.container_metrics
    metrics = (*found.metrics, *inner.metrics)
    assert {name: len(metric.label_values) for metric in metrics for name in [metric.name]} == {
        name: count for name, count in keys.items() if name not in ABSENT
    }
    values = {metric.name: metric.value.value for metric in inner.metrics}
    assert values["container_memory_swap"] >= 8 * MIB
    assert values["container_threads"] >= 4
    assert values["container_threads"] == values["container_processes"]
    assert values["container_pressure_cpu_waiting_seconds_total"] > 0
    assert values["container_fs_writes_bytes_total"] > 0
    assert values["container_spec_memory_swap_limit_bytes"] == 88 * MIB

    answer = runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container), timeout=20).stats
    used, left = answer.swap.swap_usage_bytes.value, answer.swap.swap_available_bytes.value
    assert used >= 8 * MIB
    assert used + left == 64 * MIB
    assert answer.cpu.psi.Some.Total > 0
    assert answer.cpu.psi.Some.Avg10 > 0
    assert answer.memory.psi.Some.Total > 0
    assert answer.io.psi.HasField("Some")
    podstats = runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod[0]), timeout=20).stats.linux
    assert podstats.cpu.psi.Some.Total >= answer.cpu.psi.Some.Total
    assert podstats.memory.psi.Some.Total > 0

    resources = cri.LinuxContainerResources(
        memory_limit_in_bytes=48 * MIB, memory_swap_limit_in_bytes=48 * MIB, unified={"memory.high": "max"}
    )
    resources.cpuset_cpus = "0"
    update = cri.UpdateContainerResourcesRequest(container_id=container, linux=resources)
    runtime.UpdateContainerResources(update, timeout=20)
    assert content(group / "memory.max") == str(48 * MIB)
    assert content(group / "memory.swap.max") == "0"
    assert content(group / "cpuset.cpus") == "0"
    assert content(group / "cpu.max") == "50000 100000"
    node.crictl("rmp", "-f", pod[0])


@pytest.fixture(scope="module")
def swap(in_machine: None) -> Iterator[None]:
    """A swap file, which the machine has not by itself."""
    file = Path("/swapfile")
    with file.open("wb") as out:
        out.truncate(0)
        os.posix_fallocate(out.fileno(), 0, 256 * MIB)
    file.chmod(0o600)
    for command in (["mkswap", str(file)], ["swapon", str(file)]):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    yield
    # Where a test has failed, its pod may hold more than there is room for; the machine goes with its swap.
    subprocess.run(["swapoff", str(file)], check=False, timeout=120)


def test_out_of_memory_is_the_reason(node: Node) -> None:
    """A container beyond its limit ends with 137 and OOMKilled; one whose child alone is killed is told apart."""
    pod = node.pod("oom")
    whole = node.container(pod, "whole", "exec tail /dev/zero", memory_limit_in_bytes=24 * MIB)
    status = node.wait_exited(whole)
    assert (status["exitCode"], status["reason"]) == (137, "OOMKilled")

    plain = node.container(pod, "plain", "exit 3", memory_limit_in_bytes=24 * MIB)
    status = node.wait_exited(plain)
    assert (status["exitCode"], status["reason"]) == (3, "Error")
    node.crictl("rmp", "-f", pod[0])


def test_a_fork_bomb_is_held_and_killed(node: Node) -> None:
    """pids.max holds, and stopping a container that ignores signals and forks without pause leaves nothing."""
    pod = node.pod("forks")
    # The shell that forks ends when it can no more; its children and the first process stay.
    bomb = "trap '' TERM; (while :; do sleep 1000 & done) & exec sleep 1000"
    container = node.container(pod, "bomb", bomb, unified={"pids.max": "30"})
    group = node.group("forks", container)
    deadline = time.monotonic() + 30
    while int(re.findall(r"max (\d+)", content(group / "pids.events"))[0]) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert int(content(group / "pids.current")) <= 30
    node.crictl("stop", "-t", "1", container)
    with suppress(FileNotFoundError):  # it goes as soon as it is empty
        assert content(group / "cgroup.procs") == ""
    node.crictl("rmp", "-f", pod[0])
    assert not group.exists()


def test_a_killed_shim_and_a_killed_service(node: Node) -> None:
    """sandbox-svc killed: the container goes on. Its shim killed: 137, nothing left in the group, the pod removable."""
    pod = node.pod("kill")
    container = node.container(pod, "main", "while :; do sleep 1; done")
    group = node.group("kill", container)
    before = content(group / "cgroup.procs")
    node.stack.wait_restarted("sandbox-svc", node.stack.kill("sandbox-svc"), 60)
    assert node.crictl.json("inspect", container)["status"]["state"] == "CONTAINER_RUNNING"
    assert before.split()[0] in content(group / "cgroup.procs").split()

    os.kill(shim_of(int(before.split()[0])), signal.SIGKILL)
    assert node.wait_exited(container)["exitCode"] == 137
    with suppress(FileNotFoundError):  # it goes as soon as it is empty
        assert content(group / "cgroup.procs") == ""
    node.crictl("rmp", "-f", pod[0])
    assert not group.exists()
    if node.systemd:
        assert units("cri-containerd-*.scope") == []


def shim_of(pid: int) -> int:
    """Return the parent of a container's first process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_without_a_parent(node: Node) -> None:
    """A pod without cgroup_parent runs where the runtime puts it; statistics and removal find it there."""
    metadata = {"name": "free", "uid": "uid-free", "namespace": "default", "attempt": 0}
    config = {"metadata": metadata, "log_directory": str(node.directory / "free"), "linux": {}}
    file = node.crictl.file("free.json", config)
    pod = (node.crictl("runp", file), file)
    container = node.container(pod, "main", "while :; do sleep 1; done", memory_limit_in_bytes=64 * MIB)
    info = json.loads(node.crictl("inspect", container))["info"]
    group = ROOT / Path(f"/proc/{info['pid']}/cgroup").read_text().strip().partition("::/")[2]

    assert content(group / "memory.max") == str(64 * MIB)
    (stats,) = node.crictl.json("stats", container)["stats"]
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
    node.crictl("rmp", "-f", pod[0])
    assert not group.exists()
