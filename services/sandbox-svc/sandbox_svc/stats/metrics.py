"""ListPodSandboxMetrics: cAdvisor's metrics of every running container, and of every pod its traffic and its sum."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup
from sandbox_svc.stats import group, network
from sandbox_svc.stats.descriptors import DESCRIPTORS
from sandbox_svc.stats.group import Sample
from sandbox_svc.stats.layers import LayerUsage


@dataclass(frozen=True)
class Labels:
    """The labels that all metrics of one container or pod share (descriptors.BASE)."""

    container: str
    #: The control group's path.
    id: str
    image: str
    name: str
    namespace: str
    pod: str

    def values(self) -> tuple[str, ...]:
        """Return them in the order of the descriptors."""
        return (self.container, self.id, self.image, self.name, self.namespace, self.pod)


@dataclass(frozen=True)
class ContainerView:
    """One running container: where its numbers come from. Times are nanoseconds since 1970."""

    id: str
    labels: Labels
    cgroup: str
    started_at: int
    pid: int
    layer: str = ""
    layer_usage: LayerUsage | None = None


@dataclass(frozen=True)
class PodView:
    """One ready pod."""

    id: str
    labels: Labels
    cgroup: str
    netns: str
    containers: Sequence[ContainerView] = ()


def descriptors() -> list[cri.MetricDescriptor]:
    """Return what may come, the same at any time."""
    return [descriptor.message() for descriptor in DESCRIPTORS.values()]


def collect(pods: Sequence[PodView], root: Path = cgroup.ROOT) -> Iterator[cri.PodSandboxMetrics]:
    """Yield the metrics of pods, each complete before the next is read; parts that cannot be read are absent."""
    traffic = network.read(pod.netns for pod in pods if pod.netns)
    for pod in pods:
        samples = [*_traffic(traffic.get(pod.netns, ())), *_of_group(pod.cgroup, root)]
        yield cri.PodSandboxMetrics(
            pod_sandbox_id=pod.id,
            metrics=_messages(samples, pod.labels),
            container_metrics=[
                cri.ContainerMetrics(container_id=one.id, metrics=_messages(_of_container(one, root), one.labels))
                for one in pod.containers
            ],
        )


def _messages(samples: Iterable[Sample], labels: Labels) -> list[cri.Metric]:
    now, base = time.time_ns(), labels.values()
    return [
        cri.Metric(
            name=f"container_{sample.name}",
            timestamp=now,
            metric_type=DESCRIPTORS[f"container_{sample.name}"].kind,
            label_values=(*base, *sample.labels),
            value=cri.UInt64Value(value=sample.value),
        )
        for sample in samples
    ]


def _of_group(path: str, root: Path) -> Iterator[Sample]:
    if path:
        yield from group.read(path, root)
        yield from _processes(path, root)


def _of_container(view: ContainerView, root: Path) -> Iterator[Sample]:
    yield Sample("last_seen", int(time.time()))
    yield Sample("start_time_seconds", view.started_at // 1_000_000_000)
    yield from _of_group(view.cgroup, root)
    if view.pid:
        yield from _limits(view.pid)
    if view.layer:
        yield from _layer(view.layer, view.layer_usage)


def _traffic(interfaces: Iterable[network.Interface]) -> Iterator[Sample]:
    for one in interfaces:
        for way, counts in (
            ("receive", (one.rx_bytes, one.rx_packets, one.rx_dropped, one.rx_errors)),
            ("transmit", (one.tx_bytes, one.tx_packets, one.tx_dropped, one.tx_errors)),
        ):
            for what, value in zip(("bytes", "packets", "packets_dropped", "errors"), counts, strict=True):
                yield Sample(f"network_{way}_{what}_total", value, (one.name,))


def _processes(path: str, root: Path) -> Iterator[Sample]:
    """Count processes and what they have open; one that ends meanwhile is left out."""
    tree = "" if cgroup.mode(root) == "v2" else "pids"
    pids = cgroup.pids(root / tree / cgroup.relative(path))
    opened = sockets = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.listdir(f"/proc/{pid}/fd"):
                opened += 1
                with contextlib.suppress(OSError):
                    sockets += os.readlink(f"/proc/{pid}/fd/{entry}").startswith("socket:")
    yield Sample("processes", len(pids))
    yield Sample("file_descriptors", opened)
    yield Sample("sockets", sockets)


def _limits(pid: int) -> Iterator[Sample]:
    """Yield the limit of open files, the one that cAdvisor shows; /proc/<pid>/limits has `Max open files  1024 …`."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("Max open files"):
            soft = line.split()[3]
            if soft.isdigit():
                yield Sample("ulimits_soft", int(soft), ("max_open_files",))


def _layer(directory: str, counted: LayerUsage | None) -> Iterator[Sample]:
    """Yield the writable layer's size (0 before the first count) and its file system's."""
    try:
        status, system = os.stat(directory), os.statvfs(directory)
    except OSError:
        return
    name = (group.device(f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"),)
    yield Sample("fs_usage_bytes", counted.used_bytes if counted else 0, name)
    yield Sample("fs_limit_bytes", system.f_blocks * system.f_frsize, name)
    yield Sample("fs_inodes_total", system.f_files, name)
    yield Sample("fs_inodes_free", system.f_ffree, name)
