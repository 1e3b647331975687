"""The CRI's ContainerStats and PodSandboxStats, filled from control groups, namespaces and layers."""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup
from sandbox_svc.stats import layers, network, usage

DEFAULT_INTERFACE = "eth0"


@dataclass(frozen=True)
class ContainerSource:
    """Where one container's numbers come from.

    cgroup is its cgroupsPath ("" for none), layer its writable directory ("" for none), image_root the file system
    identifier that ImageFsInfo reports for its snapshotter.
    """

    id: str
    cgroup: str
    attributes: cri.ContainerAttributes
    layer: str = ""
    image_root: str = ""


@dataclass(frozen=True)
class PodSource:
    """Where one pod's numbers come from: its own group (a cgroupsPath), its namespace's pin ("" if the host's)."""

    id: str
    cgroup: str
    attributes: cri.PodSandboxAttributes
    netns: str = ""
    containers: Sequence[ContainerSource] = ()


@dataclass(frozen=True)
class _Sample:
    """Processor time at a moment (both nanoseconds), and the rate since the sample before (None: the first)."""

    used: int
    when: int
    rate: int | None


class Collector:
    """Reads usage on demand; remembers what rates and layer counts need. Safe to use from many threads."""

    def __init__(self, *, period: float, layer_period: float, root: Path = cgroup.ROOT) -> None:
        """Take the shortest time between two samples of a rate, and the time between two counts of a layer, seconds."""
        self._period_ns = int(period * 1e9)
        self._root = root
        self._layers = layers.LayerMeter(layer_period)
        self._lock = threading.Lock()
        self._samples: dict[str, _Sample] = {}
        self._layer_of: dict[str, str] = {}

    def watch(self, source: ContainerSource) -> None:
        """Take a container's first samples, so that the first question about it has an answer. Call at its start."""
        self.container_stats(source)

    def forget(self, identity: str) -> None:
        """Drop what is remembered of a container or pod that was removed."""
        with self._lock:
            self._samples.pop(identity, None)
            layer = self._layer_of.pop(identity, "")
        if layer:
            self._layers.forget(layer)

    def close(self) -> None:
        """Stop the background count."""
        self._layers.close()

    def layer_usage(self, source: ContainerSource) -> layers.LayerUsage | None:
        """Return the last count of a container's writable layer, None before the first one and without a layer."""
        if not source.layer:
            return None
        with self._lock:
            self._layer_of[source.id] = source.layer
        return self._layers.usage(source.layer)

    def container_stats(self, source: ContainerSource) -> cri.ContainerStats:
        """Return one container's usage; parts that cannot be read are absent."""
        return self._container(source)[0]

    def list_container_stats(self, sources: Iterable[ContainerSource]) -> list[cri.ContainerStats]:
        """Return the usage of many containers, in order."""
        return [self._container(source)[0] for source in sources]

    def pod_stats(self, source: PodSource) -> cri.PodSandboxStats:
        """Return one pod's usage, with its containers'."""
        return self.list_pod_stats([source])[0]

    def list_pod_stats(self, sources: Sequence[PodSource]) -> list[cri.PodSandboxStats]:
        """Return the usage of many pods, in order."""
        traffic = network.read(source.netns for source in sources if source.netns)
        return [self._pod(source, traffic.get(source.netns)) for source in sources]

    def _container(self, source: ContainerSource) -> tuple[cri.ContainerStats, int]:
        """Return a container's stats and the number of its processes."""
        now = time.time_ns()
        stats = cri.ContainerStats(attributes=source.attributes)
        found = usage.read(source.cgroup, self._root) if source.cgroup else usage.Usage()
        if found.cpu:
            self._fill_cpu(stats.cpu, source.id, found.cpu, now)
        if found.memory:
            _fill_memory(stats.memory, found.memory, now)
            _fill_swap(stats.swap, found.memory, now)
        if found.io_stall:
            stats.io.timestamp = now
            _fill_stall(stats.io.psi, found.io_stall)
        if source.layer:
            self._fill_layer(stats.writable_layer, source, now)
        return stats, found.processes or 0

    def _pod(self, source: PodSource, traffic: Sequence[network.Interface] | None) -> cri.PodSandboxStats:
        containers = [self._container(container) for container in source.containers]
        now = time.time_ns()  # after the containers, so that a pod never has used less than they have
        stats = cri.PodSandboxStats(attributes=source.attributes)
        linux = stats.linux
        linux.containers.extend(one for one, _ in containers)
        found = usage.read(source.cgroup, self._root) if source.cgroup else usage.Usage()
        if found.cpu:
            self._fill_cpu(linux.cpu, source.id, found.cpu, now)
        if found.memory:
            _fill_memory(linux.memory, found.memory, now)
        if found.io_stall:
            linux.io.timestamp = now
            _fill_stall(linux.io.psi, found.io_stall)
        if traffic is not None:
            _fill_network(linux.network, traffic, now)
        counted = sum(processes for _, processes in containers)
        linux.process.timestamp = now
        linux.process.process_count.value = counted if found.processes is None else found.processes
        return stats

    def _fill_cpu(self, message: cri.CpuUsage, identity: str, found: usage.Cpu, now: int) -> None:
        message.timestamp = now
        message.usage_core_nano_seconds.value = found.used
        rate = self._rate(identity, found.used, now)
        if rate is not None:
            message.usage_nano_cores.value = rate
        if found.stall:
            _fill_stall(message.psi, found.stall)

    def _rate(self, identity: str, used: int, now: int) -> int | None:
        """Return nanoseconds of processor time a second since the last sample that is at least a period old.

        Two callers in quick succession get the same rate: over a few milliseconds it would be noise.
        """
        with self._lock:
            last = self._samples.get(identity)
            if last and (now - last.when < self._period_ns or used < last.used):
                if used >= last.used:
                    return last.rate
                last = None  # the group was made anew
            rate = (used - last.used) * 1_000_000_000 // (now - last.when) if last else None
            self._samples[identity] = _Sample(used, now, rate)
            return rate

    def _fill_layer(self, message: cri.FilesystemUsage, source: ContainerSource, now: int) -> None:
        counted = self.layer_usage(source)
        message.fs_id.mountpoint = source.image_root
        message.timestamp = counted.timestamp if counted else now
        if counted:
            message.used_bytes.value = counted.used_bytes
            message.inodes_used.value = counted.inodes


def _fill_memory(message: cri.MemoryUsage, found: usage.Memory, now: int) -> None:
    message.timestamp = now
    message.usage_bytes.value = found.usage
    message.working_set_bytes.value = found.working_set
    message.available_bytes.value = found.available
    message.rss_bytes.value = found.resident
    message.page_faults.value = found.faults
    message.major_page_faults.value = found.major_faults
    if found.stall:
        _fill_stall(message.psi, found.stall)


def _fill_swap(message: cri.SwapUsage, found: usage.Memory, now: int) -> None:
    message.timestamp = now
    if found.swap is not None:
        message.swap_usage_bytes.value = found.swap
    if found.swap_available is not None:
        message.swap_available_bytes.value = found.swap_available


def _fill_stall(message: cri.PsiStats, found: usage.Stall) -> None:
    for line, into in ((found.some, message.Some), (found.full, message.Full)):
        if line:
            into.Total, into.Avg10, into.Avg60, into.Avg300 = line.total, line.avg10, line.avg60, line.avg300


def _fill_network(message: cri.NetworkUsage, interfaces: Sequence[network.Interface], now: int) -> None:
    message.timestamp = now
    for interface in interfaces:
        entry = message.interfaces.add(name=interface.name)
        entry.rx_bytes.value, entry.rx_errors.value = interface.rx_bytes, interface.rx_errors
        entry.tx_bytes.value, entry.tx_errors.value = interface.tx_bytes, interface.tx_errors
    by_name = {entry.name: entry for entry in message.interfaces}
    main = by_name.get(DEFAULT_INTERFACE) or next(iter(message.interfaces), None)
    if main is not None:
        message.default_interface.CopyFrom(main)
