"""The metrics that ListPodSandboxMetrics returns: cAdvisor's, by name, meaning and labels.

The list is the same for the life of the process whatever the kernel offers, because the kubelet asks for it once.
"""

from dataclasses import dataclass

from bulkhead.proto.runtime.v1 import api_pb2 as cri

#: Labels of every metric, as the kubelet's own /metrics/cadvisor has them. `container` is "" for a pod's own metrics.
BASE = ("container", "id", "image", "name", "namespace", "pod")


@dataclass(frozen=True)
class Descriptor:
    """One metric; `labels` come after BASE."""

    name: str
    help: str
    kind: "cri.MetricType"
    labels: tuple[str, ...] = ()

    def message(self) -> cri.MetricDescriptor:
        """Return it as ListMetricDescriptors shows it."""
        return cri.MetricDescriptor(name=self.name, help=self.help, label_keys=(*BASE, *self.labels))


def _counter(name: str, text: str, *labels: str) -> Descriptor:
    return Descriptor(f"container_{name}", text, cri.COUNTER, labels)


def _gauge(name: str, text: str, *labels: str) -> Descriptor:
    return Descriptor(f"container_{name}", text, cri.GAUGE, labels)


_ALL = (
    _counter("cpu_usage_seconds_total", "Processor time used, in seconds."),
    _counter("cpu_user_seconds_total", "Processor time used in user mode, in seconds."),
    _counter("cpu_system_seconds_total", "Processor time used in the kernel, in seconds."),
    _counter("cpu_cfs_periods_total", "Enforcement periods of the processor quota that elapsed."),
    _counter("cpu_cfs_throttled_periods_total", "Enforcement periods in which the quota was used up."),
    _counter("cpu_cfs_throttled_seconds_total", "Time in which the quota kept processes from running, in seconds."),
    _gauge("memory_usage_bytes", "Memory charged, with the file cache, in bytes."),
    _gauge("memory_working_set_bytes", "Memory charged less the inactive file cache, in bytes."),
    _gauge("memory_max_usage_bytes", "Highest memory usage so far, in bytes; the present one on kernels before 5.19."),
    _gauge("memory_rss", "Anonymous memory, in bytes."),
    _gauge("memory_cache", "File cache, in bytes."),
    _gauge("memory_mapped_file", "Mapped files, in bytes."),
    _gauge("memory_swap", "Swap used, in bytes."),
    _gauge("memory_kernel_usage", "Kernel memory, in bytes."),
    _gauge("memory_total_active_file_bytes", "File cache on the active list, in bytes."),
    _gauge("memory_total_inactive_file_bytes", "File cache on the inactive list, in bytes."),
    _counter("memory_failcnt", "Times that the memory limit was met."),
    _counter("memory_failures_total", "Page faults.", "failure_type", "scope"),
    _counter("oom_events_total", "Processes that were killed for want of memory."),
    _gauge("hugetlb_usage_bytes", "Huge pages in use, in bytes.", "pagesize"),
    _gauge("hugetlb_max_usage_bytes", "Most huge pages in use so far, in bytes.", "pagesize"),
    _counter("blkio_device_usage_total", "Bytes moved, by operation.", "device", "major", "minor", "operation"),
    _counter("fs_reads_total", "Reads from a device.", "device"),
    _counter("fs_writes_total", "Writes to a device.", "device"),
    _counter("fs_reads_bytes_total", "Bytes read from a device.", "device"),
    _counter("fs_writes_bytes_total", "Bytes written to a device.", "device"),
    _gauge("fs_usage_bytes", "Bytes on disk of the writable layer.", "device"),
    _gauge("fs_limit_bytes", "Size of the file system that holds the writable layer, in bytes.", "device"),
    _gauge("fs_inodes_total", "Inodes of the file system that holds the writable layer.", "device"),
    _gauge("fs_inodes_free", "Free inodes of the file system that holds the writable layer.", "device"),
    *(
        _counter(f"network_{way}_{what}_total", f"{text} on an interface of the pod.", "interface")
        for way, done in (("receive", "received"), ("transmit", "sent"))
        for what, text in (
            ("bytes", f"Bytes {done}"),
            ("packets", f"Packets {done}"),
            ("packets_dropped", f"Packets dropped that should have been {done}"),
            ("errors", f"Errors while packets were {done}"),
        )
    ),
    _gauge("processes", "Processes."),
    _gauge("threads", "Threads."),
    _gauge("threads_max", "Most threads allowed; 0 stands for no limit."),
    _gauge("file_descriptors", "Open file descriptors."),
    _gauge("sockets", "Open sockets."),
    _gauge("ulimits_soft", "Soft limits of the first process.", "ulimit"),
    _gauge("last_seen", "When the container was last seen, in seconds since 1970."),
    _gauge("start_time_seconds", "When the container started, in seconds since 1970."),
    _gauge("spec_cpu_period", "Length of the processor quota's period, in microseconds."),
    _gauge("spec_cpu_quota", "Processor time allowed in a period, in microseconds."),
    _gauge("spec_cpu_shares", "Share of the processors in competition with others."),
    _gauge("spec_memory_limit_bytes", "Memory limit, in bytes; 0 stands for no limit."),
    _gauge("spec_memory_reservation_limit_bytes", "Soft memory limit, in bytes; 0 stands for no limit."),
    _gauge("spec_memory_swap_limit_bytes", "Limit of memory and swap, in bytes; 0 stands for no limit."),
    *(
        _counter(f"pressure_{what}_{how}_seconds_total", f"Time in which {who} waited for {what}, in seconds.")
        for what in ("cpu", "memory", "io")
        for how, who in (("waiting", "some tasks"), ("stalled", "all tasks"))
    ),
)

#: Every metric by name.
DESCRIPTORS = {descriptor.name: descriptor for descriptor in _ALL}
