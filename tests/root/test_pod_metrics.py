"""ListMetricDescriptors and ListPodSandboxMetrics with a real pod, as the conformance suite's head looks at them."""

import time
from collections.abc import Iterator

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

#: What the kernel or the disk may not offer here: version 1 has no pressure, a tmpfs no device.
MAY_LACK = (
    "container_pressure_",
    "container_hugetlb_",
    "container_blkio_",
    "container_fs_reads",
    "container_fs_writes",
)
#: What is not there at once.
LATE = ("container_cpu_cfs_throttled_periods_total", "container_fs_usage_bytes")
LIMITS = cri.LinuxContainerResources(
    cpu_period=100000,
    cpu_quota=20000,
    cpu_shares=1024,
    memory_limit_in_bytes=64 << 20,
    memory_swap_limit_in_bytes=64 << 20,
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One sandbox-svc."""
    with Sandbox(number=95) as running:
        yield running


def test_a_pod_has_every_metric(sandbox: Sandbox) -> None:
    """All that is described comes for a pod with a limited container, with as many labels as its descriptor."""
    pods = sandbox.pods()
    config = pods.config("metrics")
    pod = pods.run(config)
    linux = cri.LinuxContainerConfig(resources=LIMITS)
    container = pods.start(pod, config, "main", "while true; do :; done", linux=linux)
    pods.exec(container, "sh", "-c", "seq 1 10000 > /file; sync")
    keys = {
        one.name: tuple(one.label_keys)
        for one in pods.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest(), timeout=30).descriptors
    }
    deadline = time.monotonic() + 60
    while True:
        answer = pods.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest(), timeout=30)
        [found] = [one for one in answer.pod_metrics if one.pod_sandbox_id == pod]
        [inside] = found.container_metrics
        values = {metric.name: metric.value.value for metric in inside.metrics}
        values |= {metric.name: metric.value.value for metric in found.metrics if metric.name not in values}
        # The processor's limit is met after a while, and what the layer takes is measured now and then.
        if all(values.get(name) for name in LATE) or time.monotonic() > deadline:
            break
        time.sleep(0.1)

    for metric in (*found.metrics, *inside.metrics):
        assert len(metric.label_values) == len(keys[metric.name]), metric.name
        labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
        assert (labels["pod"], labels["namespace"]) == ("metrics", "default")
    assert [name for name in keys if name not in values and not name.startswith(MAY_LACK)] == []
    assert inside.container_id == container
    assert values["container_spec_cpu_quota"] == 20000
    assert values["container_spec_memory_limit_bytes"] == 64 << 20
    assert values["container_memory_usage_bytes"] > 0
    assert values["container_cpu_cfs_throttled_periods_total"] > 0
    assert values["container_processes"] == 1
    assert values["container_threads"] == 1
    assert values["container_fs_limit_bytes"] > values["container_fs_usage_bytes"] > 0

    stream = pods.runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest(), timeout=30)
    streamed = [one.pod_sandbox_id for message in stream for one in message.pod_sandbox_metrics]
    assert streamed == [one.pod_sandbox_id for one in answer.pod_metrics]
    pods.remove(pod)
