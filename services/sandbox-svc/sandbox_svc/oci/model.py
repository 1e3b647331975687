"""What the spec builders are given: requests, paths and facts; nothing here opens a file or asks the kernel.

Whatever must be looked up while a spec is built (a device node, a localhost seccomp profile, the propagation of a
mount) goes through `Host`, which `sandbox_svc.oci.host.LinuxHost` answers from the machine and the tests from a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.proto.runtime.v1 import api_pb2 as cri

#: A JSON object: an OCI runtime spec, an image config, a seccomp profile.
Json = dict[str, Any]


@dataclass(frozen=True)
class Device:
    """A device node of the host as linux.devices wants it (OCI runtime-spec, config-linux.md)."""

    path: str
    #: "c" or "b" (a "u" of the spec is "c" to the kernel).
    type: str
    major: int
    minor: int
    #: Permission bits, without the file type.
    mode: int
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class DeviceNode:
    """A device node that CDI puts into a container; what is None is taken from the node of the host."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True)
class Edits:
    """Changes to an OCI spec, as CDI devices need them."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    #: (interface of the host, its name in the container).
    net_devices: tuple[tuple[str, str], ...] = ()
    #: (member of `hooks`, OCI hook).
    hooks: tuple[tuple[str, Json], ...] = ()
    #: OCI mounts.
    mounts: tuple[Json, ...] = ()
    #: linux.intelRdt, None where nothing is said.
    rdt: Json | None = None
    groups: tuple[int, ...] = ()

    def __add__(self, other: "Edits") -> "Edits":
        """Return these edits followed by others, whose intelRdt replaces ours."""
        return Edits(
            env=self.env + other.env,
            device_nodes=self.device_nodes + other.device_nodes,
            net_devices=self.net_devices + other.net_devices,
            hooks=self.hooks + other.hooks,
            mounts=self.mounts + other.mounts,
            rdt=self.rdt if other.rdt is None else other.rdt,
            groups=self.groups + other.groups,
        )


class Host(Protocol):
    """The lookups that a spec may need; each raises OSError as the system call behind it does."""

    def devices(self) -> Sequence[Device]:
        """Return every device node below /dev that a privileged container is given."""

    def device(self, path: str) -> Sequence[Device]:
        """Return the node at path, symlinks followed, or all nodes below it when it is a directory."""

    def real_path(self, path: str) -> str:
        """Return the path without symlinks; FileNotFoundError when there is nothing there."""

    def exists(self, path: str) -> bool:
        """Tell whether the path exists, symlinks followed."""

    def propagation(self, path: str) -> str:
        """Return "shared", "slave" or "private": the propagation of the mount that holds path."""

    def read(self, path: str) -> bytes:
        """Return a file's bytes (a localhost seccomp profile, a base runtime spec); at most 4 MiB."""

    def thermal_throttle_paths(self) -> Sequence[str]:
        """Return the throttle counters of the processors, which are masked by default."""

    def cgroup_options(self) -> Sequence[str]:
        """Return the mount options of the node's cgroup2 file system that a second mount of it must repeat."""

    def apparmor_profile_loaded(self, name: str) -> bool:
        """Tell whether the kernel has an AppArmor profile of that name."""


class Hardware(Protocol):
    """What the node has configured beyond its kernel: CDI devices, block I/O and RDT classes."""

    @property
    def blockio_enabled(self) -> bool:
        """Whether there are block I/O classes at all."""

    @property
    def rdt_enabled(self) -> bool:
        """Whether there are RDT classes at all."""

    def block_io(self, name: str) -> Json:
        """Return linux.resources.blockIO of a class; FailedPrecondition says why there is none."""

    def check_rdt_class(self, name: str, *, from_pod: bool) -> None:
        """Raise FailedPrecondition for an RDT class that is not there, or that pods may not ask for."""

    def edits(self, names: Sequence[str]) -> Edits:
        """Return all edits that CDI devices of these full names need; NotFound for one that is not defined."""

    def node(self, path: str) -> Device:
        """Return the device node or FIFO at a path of the host, symlinks not followed; OSError for anything else."""


@dataclass(frozen=True)
class HostFacts:
    """What does not change while a service runs: the kernel, our own privileges, the runtime binary."""

    host: Host
    #: "v1", "hybrid" (v1 controllers, with an empty v2 tree beside them) or "v2".
    cgroup_mode: str = "v2"
    #: Our own permitted capabilities (all that a privileged container can be given), as CAP_… names.
    capabilities: tuple[str, ...] = ()
    #: False when /proc/self/oom_score_adj cannot be lowered: lower scores asked for are then clamped to ours.
    can_lower_oom_score_adj: bool = True
    own_oom_score_adj: int = 0
    #: Whether we run inside a user namespace ourselves.
    in_user_namespace: bool = False
    apparmor: bool = False
    selinux: bool = False
    seccomp: bool = True
    hugetlb: bool = True
    swap_accounting: bool = True
    hostname: str = ""
    #: platform.machine(): "x86_64", "aarch64", …
    machine: str = "x86_64"
    #: (major, minor) of the kernel, for the syscalls of the default seccomp profile.
    kernel: tuple[int, int] = (4, 8)


@dataclass(frozen=True)
class RuntimeFacts:
    """What the OCI runtime binary of a handler can do; crun 1.8 has no `features` command, so it may be a guess."""

    #: "crun", "runc" or "" for anything else.
    name: str = "runc"
    #: crun below 1.9 refuses 1.1 and later; 1.0.2 is read by all.
    oci_version: str = "1.0.2"
    recursive_read_only: bool = False
    id_mapped_mounts: bool = False
    #: Moves network devices into a container; others would leave them out without a word.
    net_devices: bool = True
    #: Sets a memory policy (linux.memoryPolicy of runtime-spec 1.3); others would leave it out likewise.
    memory_policy: bool = True
    #: Sets process.scheduler and process.ioPriority (runtime-spec 1.1); others would leave them out likewise.
    scheduling: bool = True
    #: crun takes the precompiled seccomp filter from an annotation.
    seccomp_bpf_annotation: bool = False


@dataclass(frozen=True)
class SandboxFiles:
    """Files made for the pod on the host; an empty path leaves the mount out."""

    hostname: str = ""
    hosts: str = ""
    resolv_conf: str = ""
    #: The pod's own tmpfs; /dev/shm of the host is used where the pod shares the node's IPC.
    shm: str = ""


@dataclass(frozen=True)
class RootfsUsers:
    """The rootfs's /etc/passwd and /etc/group; None where the file is missing."""

    passwd: bytes | None = None
    group: bytes | None = None


@dataclass(frozen=True)
class SandboxInput:
    """Everything that decides the spec of a pause container."""

    id: str
    config: cri.PodSandboxConfig
    #: The pause image's config JSON (the whole document, of which "config" is read).
    image_config: Json
    #: The pause image's reference, for the annotation io.kubernetes.cri.image-name.
    image_name: str
    runtime: Runtime
    handler: RuntimeHandler
    facts: HostFacts
    runtime_facts: RuntimeFacts
    #: The bind-mounted network namespace; "" for the node's network.
    netns_path: str
    files: SandboxFiles
    users: RootfsUsers = field(default_factory=RootfsUsers)
    #: A user namespace made before the pause container (for its netns), or "".
    userns_path: str = ""


@dataclass(frozen=True)
class ContainerInput:
    """Everything that decides the spec of a container in a pod."""

    id: str
    sandbox_id: str
    config: cri.ContainerConfig
    sandbox_config: cri.PodSandboxConfig
    #: The image's config JSON (the whole document, of which "config" is read).
    image_config: Json
    #: The image's reference, for the annotation io.kubernetes.cri.image-name.
    image_name: str
    runtime: Runtime
    handler: RuntimeHandler
    facts: HostFacts
    runtime_facts: RuntimeFacts
    #: The pause process: its namespaces are joined as /proc/<pid>/ns/….
    sandbox_pid: int
    files: SandboxFiles
    hardware: Hardware
    users: RootfsUsers = field(default_factory=RootfsUsers)
    #: The process whose PID namespace is joined when the mode is TARGET.
    target_pid: int = 0
    #: Directory on the host below which image-defined volumes stand; see `image_volumes`.
    volumes_directory: str = ""
    #: Sources of mounts with an `image` by index in config.mounts: where image-svc mounted that image.
    image_mounts: Mapping[int, str] = field(default_factory=dict)
    #: The process label of the pause container, taken over where the container asks for none.
    sandbox_process_label: str = ""


@dataclass(frozen=True)
class ImageVolume:
    """A volume named by the image: the caller makes host_path and copies the image's content of container_path in."""

    container_path: str
    host_path: str
