"""Everything an RPC works with, in one place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bulkhead import __version__, paths
from bulkhead.config.model import Config
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup, usermap
from sandbox_svc.background import Background
from sandbox_svc.checkpoint.under_way import UnderWay
from sandbox_svc.cni import Manager
from sandbox_svc.happenings import Happenings
from sandbox_svc.hardware import ConfiguredHardware
from sandbox_svc.images import Images
from sandbox_svc.ledger import Ledger
from sandbox_svc.nri.hooks import Hooks
from sandbox_svc.nri.lifecycle import Lifecycle
from sandbox_svc.nri.node_runtime import Controllers, NodeRuntime
from sandbox_svc.nri_exec import Chain
from sandbox_svc.oci.model import HostFacts
from sandbox_svc.reserve import Names
from sandbox_svc.runtimes import Resolved, Runtimes
from sandbox_svc.stats import Collector, ContainerSource, PodSource
from sandbox_svc.store.database import Database
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.model import Model
from sandbox_svc.store.records import SandboxRecord
from sandbox_svc.streams import Streams
from sandbox_svc.task.zygote import Zygote
from sandbox_svc.undo import ONCE, Undoer
from sandbox_svc.watch import Watcher


@dataclass
class Node:
    """The parts of sandbox-svc; RPC functions take it as their first argument."""

    config: Config
    database: Database
    model: Model
    images: Images
    networks: dict[str, Manager]
    runtimes: Runtimes
    facts: HostFacts
    zygote: Zygote
    streams: Streams
    background: Background
    collector: Collector
    happenings: Happenings
    #: sandbox_svc.recovery.soon.
    settle: Callable[["Node", Pod], None]
    pod_names: Names = field(default_factory=Names)
    container_names: Names = field(default_factory=Names)

    def __post_init__(self) -> None:
        undoer = Undoer(self.config, self.database, self.model, self.networks, self.images)
        self.ledger = Ledger(self.database, undoer.by_kind(), ONCE)
        hugepages = self.facts.hugetlb and not self.config.runtime.disable_hugetlb_controller
        controllers = Controllers(swap=self.facts.swap_accounting, hugepages=hugepages)
        plugins = NodeRuntime(self.model, self.bundle, controllers)
        self.nri = Lifecycle(Hooks(self.config.nri, plugins, __version__), plugins, self.background)
        self.watcher = Watcher(self.ledger, self.background, self.nri.ended)
        self.exec_plugins = Chain(self.config.bulkhead)
        self.hardware = ConfiguredHardware(self.config.runtime)
        self.checkpoints = UnderWay()

    @property
    def events_socket(self) -> Path:
        """Where foreign shims publish their events."""
        return paths.service_socket(self.config.state, "sandbox-svc").with_name("events.ttrpc")

    def network(self, handler: str) -> Manager:
        """Return the networks that pods of a handler are attached to."""
        return self.networks.get(handler) or self.networks[""]

    def reconnector(self, pod: Pod) -> Callable[[], None]:
        """Return what to call when the connection to a pod's shim breaks: the pod is settled anew."""
        return lambda: self.settle(self, pod)

    def container_source(self, container: Container) -> ContainerSource:
        """Return where a container's usage is read."""
        record = container.record
        return ContainerSource(
            id=record.id,
            cgroup=record.cgroup if record.finished_at == 0 else "",
            attributes=cri.ContainerAttributes(
                id=record.id,
                metadata=record.config.metadata,
                labels=record.config.labels,
                annotations=record.config.annotations,
            ),
            layer=record.upper_dir,
            image_root=str(self._image_root(record.upper_dir)),
        )

    def _image_root(self, upper_dir: str) -> Path:
        """Return the directory of the snapshotter that a writable directory is of."""
        proxies = [plugin.root for plugin in self.config.proxy_plugins.values() if plugin.snapshotter and plugin.root]
        own = self.config.root / "snapshots"
        return next((root for root in proxies if upper_dir.startswith(f"{root}/")), own)

    def pod_source(self, pod: Pod) -> PodSource:
        """Return where a pod's usage is read: the cgroup the kubelet made for it, else its pause container's."""
        record = pod.record
        return PodSource(
            id=record.id,
            cgroup=self._pod_cgroup(record),
            attributes=cri.PodSandboxAttributes(
                id=record.id,
                metadata=record.config.metadata,
                labels=record.config.labels,
                annotations=record.config.annotations,
            ),
            netns=record.netns,
            containers=[
                self.container_source(c)
                for c in self.model.containers_of(pod)
                if c.record.state == cri.CONTAINER_RUNNING
            ],
        )

    def _pod_cgroup(self, record: SandboxRecord) -> str:
        parent = record.config.linux.cgroup_parent
        if not parent:
            return record.cgroup
        return cgroup.parent_path(parent, systemd=self.runtimes.resolve(record.handler).systemd_cgroup)

    def pod_directory(self, ident: str) -> Path:
        """Return where a pod's files are: hostname, hosts, resolv.conf."""
        return self.config.root / "sandboxes" / ident

    def user_namespaces(self, runtime: Resolved) -> bool:
        """Whether pods of a handler may have user namespaces: our shim, a runtime and a file system that map ids."""
        return runtime.ours and runtime.facts.id_mapped_mounts and usermap.supported(self.config.root)

    def users(self, pod: Pod) -> usermap.UserMap | None:
        """Return the ids of a pod with a user namespace."""
        return usermap.of_pod(pod.record.config, self.config.state / "userns" / pod.id)

    def image_directory(self, ident: str) -> Path:
        """Return where the images are mounted that a container has as volumes."""
        return self.config.state / "image-volumes" / ident

    def id_stage(self, ident: str) -> Path:
        """Return where a container's layers are mapped while its rootfs is mounted."""
        return self.config.state / "idmapped" / ident

    def shm(self, ident: str) -> Path:
        """Return where a pod's /dev/shm is mounted."""
        return self.config.state / "shm" / ident

    def container_directory(self, ident: str) -> Path:
        """Return where a container's image volumes are."""
        return self.config.root / "containers" / ident

    def bundle(self, ident: str) -> Path:
        """Return the OCI bundle of a container or pause container."""
        return paths.bundle(self.config.state, ident)

    def netns(self, ident: str) -> Path:
        """Return where the network namespace of a pod is pinned."""
        return paths.netns(self.config.state, ident, under_state=self.config.runtime.netns_mounts_under_state_dir)
