"""Pod metrics: what control groups of both versions count, and that descriptors and samples agree."""

import os
import socket
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.stats import group, metrics
from sandbox_svc.stats.descriptors import BASE, DESCRIPTORS
from sandbox_svc.stats.group import Sample
from sandbox_svc.stats.layers import LayerUsage

LABELS = metrics.Labels("app", "/pods/one", "img:1", "c" * 64, "default", "web")


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """A hybrid host's group /pods/one."""
    tree(
        tmp_path,
        {
            "unified/cgroup.controllers": "",
            "unified/pods/one/cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=3000000\n",
            "cpuacct/pods/one/cpuacct.usage": "5000000000\n",
            "cpuacct/pods/one/cpuacct.usage_user": "3000000000\n",
            "cpuacct/pods/one/cpuacct.usage_sys": "2000000000\n",
            "cpu/pods/one/cpu.stat": "nr_periods 7\nnr_throttled 2\nthrottled_time 4000000000\n",
            "cpu/pods/one/cpu.cfs_period_us": "100000\n",
            "cpu/pods/one/cpu.cfs_quota_us": "-1\n",
            "cpu/pods/one/cpu.shares": "1024\n",
            "memory/pods/one/memory.usage_in_bytes": "1000\n",
            "memory/pods/one/memory.max_usage_in_bytes": "2000\n",
            "memory/pods/one/memory.failcnt": "4\n",
            "memory/pods/one/memory.kmem.usage_in_bytes": "50\n",
            "memory/pods/one/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "memory/pods/one/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/pods/one/memory.memsw.limit_in_bytes": "4096\n",
            "memory/pods/one/memory.stat": "pgfault 1\ntotal_rss 300\ntotal_cache 400\ntotal_inactive_file 100\n"
            "total_pgfault 9\n",
            "blkio/pods/one/blkio.throttle.io_service_bytes_recursive": "999:7 Read 10\n999:7 Total 10\nTotal 10\n",
            "blkio/pods/one/blkio.throttle.io_serviced_recursive": "999:7 Read 2\n999:7 Write 3\nTotal 5\n",
            "pids/pods/one/pids.current": "6\n",
            "pids/pods/one/pids.max": "max\n",
            "hugetlb/pods/one/hugetlb.2MB.usage_in_bytes": "11\n",
            "hugetlb/pods/one/hugetlb.2MB.max_usage_in_bytes": "12\n",
        },
    )
    return tmp_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A version 2 host's group /pods/one."""
    tree(
        tmp_path,
        {
            "cgroup.controllers": "cpu memory",
            "pods/one/cpu.stat": "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 7\n"
            "nr_throttled 2\nthrottled_usec 4000000\n",
            "pods/one/cpu.max": "20000 100000\n",
            "pods/one/cpu.weight": "39\n",
            "pods/one/cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=3000000\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=2000000\n",
            "pods/one/memory.current": "1000\n",
            "pods/one/memory.peak": "2000\n",
            "pods/one/memory.max": "65536\n",
            "pods/one/memory.swap.max": "0\n",
            "pods/one/memory.swap.current": "5\n",
            "pods/one/memory.events": "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n",
            "pods/one/memory.stat": "anon 300\nfile 400\ninactive_file 100\nkernel_stack 20\nslab 30\npgfault 9\n",
            "pods/one/io.stat": "999:7 rbytes=10 wbytes=20 rios=2 wios=3 dbytes=0 dios=0\n",
            "pods/one/pids.current": "6\n",
            "pods/one/pids.max": "100\n",
            "pods/one/hugetlb.2MB.current": "11\n",
        },
    )
    return tmp_path


COMMON = {
    Sample("cpu_usage_seconds_total", 5),
    Sample("cpu_user_seconds_total", 3),
    Sample("cpu_system_seconds_total", 2),
    Sample("cpu_cfs_periods_total", 7),
    Sample("cpu_cfs_throttled_periods_total", 2),
    Sample("cpu_cfs_throttled_seconds_total", 4),
    Sample("spec_cpu_period", 100000),
    Sample("memory_usage_bytes", 1000),
    Sample("memory_working_set_bytes", 900),
    Sample("memory_max_usage_bytes", 2000),
    Sample("memory_rss", 300),
    Sample("memory_cache", 400),
    Sample("memory_kernel_usage", 50),
    Sample("memory_failcnt", 4),
    Sample("memory_failures_total", 9, ("pgfault", "hierarchy")),
    Sample("oom_events_total", 1),
    Sample("fs_reads_bytes_total", 10, ("999:7",)),
    Sample("fs_reads_total", 2, ("999:7",)),
    Sample("fs_writes_total", 3, ("999:7",)),
    Sample("blkio_device_usage_total", 10, ("999:7", "999", "7", "Read")),
    Sample("threads", 6),
    Sample("hugetlb_usage_bytes", 11, ("2MB",)),
    Sample("pressure_cpu_waiting_seconds_total", 3),
}


def test_version_1_counts(v1: Path) -> None:
    """Every controller's directory is read; no limit is 0 or no sample; pressure is the version 2 tree's."""
    found = group.read("/pods/one", v1)
    assert COMMON - set(found) == set()
    more = {
        Sample("spec_cpu_shares", 1024),
        Sample("spec_memory_limit_bytes", 0),
        Sample("spec_memory_swap_limit_bytes", 4096),
        Sample("memory_failures_total", 1, ("pgfault", "container")),
        Sample("threads_max", 0),
        Sample("hugetlb_max_usage_bytes", 12, ("2MB",)),
    }
    assert more - set(found) == set()
    assert "spec_cpu_quota" not in {sample.name for sample in found}
    assert len({(sample.name, sample.labels) for sample in found}) == len(found)


def test_version_2_counts(v2: Path) -> None:
    """The same numbers come from the one directory of version 2."""
    found = group.read("/pods/one", v2)
    assert COMMON - set(found) == set()
    more = {
        Sample("spec_cpu_quota", 20000),
        Sample("spec_cpu_shares", 998),
        Sample("spec_memory_limit_bytes", 65536),
        Sample("spec_memory_swap_limit_bytes", 65536),
        Sample("memory_swap", 5),
        Sample("threads_max", 100),
        Sample("pressure_cpu_stalled_seconds_total", 2),
    }
    assert more - set(found) == set()
    assert len({(sample.name, sample.labels) for sample in found}) == len(found)


def test_a_group_that_is_gone_has_nothing(v2: Path) -> None:
    """A container that ended between two steps makes no samples and no error."""
    assert group.read("/pods/two", v2) == []


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_samples_fit_their_descriptors(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every metric that comes has a descriptor with as many labels, and a pod has its containers in it."""
    root = request.getfixturevalue(version)
    procs = "pods/one/cgroup.procs" if version == "v2" else "pids/pods/one/cgroup.procs"
    tree(root, {procs: f"{os.getpid()}\n"})
    usage = LayerUsage(4096, 2, 1)
    one = metrics.ContainerView("c" * 64, LABELS, "/pods/one", 7_000_000_000, os.getpid(), str(tmp_path), usage)
    with socket.socket():
        [pod] = metrics.collect([metrics.PodView("p", LABELS, "/pods/one", "", [one])], root)

    keys = {descriptor.name: descriptor.label_keys for descriptor in metrics.descriptors()}
    [container] = pod.container_metrics
    values = {metric.name: metric.value.value for metric in container.metrics}
    for metric in (*pod.metrics, *container.metrics):
        assert len(metric.label_values) == len(keys[metric.name]), metric.name
        assert tuple(metric.label_values[: len(BASE)]) == LABELS.values()
    assert (pod.pod_sandbox_id, container.container_id) == ("p", "c" * 64)
    assert values["container_start_time_seconds"] == 7
    assert values["container_processes"] == 1
    assert values["container_sockets"] >= 1
    assert values["container_file_descriptors"] > values["container_sockets"]
    assert values["container_fs_usage_bytes"] == 4096
    assert values["container_fs_inodes_total"] >= values["container_fs_inodes_free"]
    assert values["container_ulimits_soft"] > 0


def test_descriptors_say_what_they_mean() -> None:
    """Each has a text, the base labels, and a name that tells a counter."""
    for descriptor in metrics.descriptors():
        assert descriptor.help
        assert tuple(descriptor.label_keys[: len(BASE)]) == BASE
    counters = {name for name, descriptor in DESCRIPTORS.items() if descriptor.kind == cri.COUNTER}
    named = {name for name in DESCRIPTORS if name.endswith("_total")}
    # cAdvisor's names: one counter without the ending, and one gauge that has it.
    assert named | {"container_memory_failcnt"} == counters | {"container_fs_inodes_total"}
