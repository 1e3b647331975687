"""The durable records of a pod and of a container, and the identity of a process.

State is never stored: it derives from the three timestamps (created, started, finished; nanoseconds since the epoch,
0 = not yet), so a crash between two writes cannot leave a state that contradicts them.
"""

import base64
import enum
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypeVar

from bulkhead.proto.runtime.v1 import api_pb2 as cri

_T = TypeVar("_T")


class Phase(enum.StrEnum):
    """Whether a thing is on its way in, there, or on its way out; only those that are there are listed."""

    CREATING = "creating"
    PRESENT = "present"
    REMOVING = "removing"


@dataclass(frozen=True)
class Process:
    """A process beyond doubt: pids are reused, but not with the same start time in the same boot."""

    pid: int
    #: Field 22 of /proc/<pid>/stat: clock ticks since boot.
    start_time: int
    #: /proc/sys/kernel/random/boot_id.
    boot_id: str


@dataclass(frozen=True)
class ShimBinding:
    """How to reach the shim of a pod again after our own restart.

    Beside a foreign shim stands our keeper, which looks like a shim of ours: address and process are then the keeper's.
    """

    #: The ttrpc socket.
    address: str
    #: Who listens there; None until it was forked.
    process: Process | None = None
    #: The directory of the sockets.
    directory: str = ""
    namespace: str = "k8s.io"
    #: The foreign shim behind the keeper: its binary ("" where there is none), socket, process, and task service.
    binary: str = ""
    foreign_address: str = ""
    foreign_process: Process | None = None
    foreign_service: str = ""
    #: The pause container's bundle, and where the foreign shim publishes its events.
    bundle: str = ""
    events: str = ""

    @property
    def foreign(self) -> bool:
        """Whether a shim that is not ours has the pod's containers."""
        return bool(self.binary)


@dataclass(frozen=True)
class Exit:
    """How a container or pause process ended."""

    status: int
    #: Nanoseconds since the epoch.
    at: int
    oom: bool = False
    #: False when the real status is lost and `status` is a stand-in.
    known: bool = True


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


@dataclass(frozen=True)
class _Record:
    """Common to both kinds: serialisation of everything but the CRI config, which has a column of its own."""

    def to_json(self) -> dict[str, Any]:
        """Return the record without its config, as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "config"}


def _plain(value: Any) -> Any:
    if isinstance(value, Process | ShimBinding):
        return asdict(value)
    return _encode(value)


def _process(value: dict[str, Any] | None) -> Process | None:
    return Process(**value) if value else None


def shim_of(value: dict[str, Any] | None) -> ShimBinding | None:
    """Return the binding that JSON describes."""
    if not value:
        return None
    known = _known(ShimBinding, value)
    identities = {k: _process(value.get(k)) for k in ("process", "foreign_process")}
    return ShimBinding(**{**known, **identities})


def _known(kind: type[_T], value: dict[str, Any]) -> dict[str, Any]:
    """Drop keys that a newer release may have written."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type] # both callers are dataclasses
    return {k: v for k, v in value.items() if k in names}


@dataclass(frozen=True)
class SandboxRecord(_Record):
    """A pod."""

    id: str
    config: cri.PodSandboxConfig
    #: The handler's name in the configuration, and as the request had it ("" for the default one).
    handler: str
    requested_handler: str
    created_at: int
    phase: Phase = Phase.CREATING
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    process: Process | None = None
    shim: ShimBinding | None = None
    #: The bind-mounted network namespace; "" for the node's network.
    netns: str = ""
    #: The pod's addresses, the main one first.
    ips: tuple[str, ...] = ()
    image_id: str = ""
    image_name: str = ""
    #: linux.cgroupsPath of the pause container's spec.
    cgroup: str = ""
    process_label: str = ""

    @property
    def ready(self) -> bool:
        """Whether the pod runs, by what is recorded."""
        return self.phase is Phase.PRESENT and self.started_at > 0 and self.finished_at == 0

    @classmethod
    def from_json(cls, value: dict[str, Any], config: bytes) -> Self:
        """Return the record that `to_json` and the config column describe."""
        value = _known(cls, value)
        value.update(
            config=cri.PodSandboxConfig.FromString(config),
            phase=Phase(value["phase"]),
            process=_process(value.get("process")),
            shim=shim_of(value.get("shim")),
            ips=tuple(value.get("ips", ())),
        )
        return cls(**value)


@dataclass(frozen=True)
class ContainerRecord(_Record):
    """A container of a pod."""

    id: str
    sandbox_id: str
    config: cri.ContainerConfig
    created_at: int
    phase: Phase = Phase.CREATING
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    process: Process | None = None
    #: The image id, "sha256:…": what CRI calls image_ref.
    image_id: str = ""
    #: A tag and a repository digest of the image when the container was made, "" for none.
    image_name: str = ""
    image_digest: str = ""
    #: The image ids of the mounts that are images, in the order of those mounts.
    volume_images: tuple[str, ...] = ()
    #: Where the container's writes go.
    upper_dir: str = ""
    cgroup: str = ""
    log_path: str = ""
    #: The signal the image asks to be stopped with ("SIGTERM", "15", …), "" for none.
    image_stop_signal: str = ""
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    #: Resources after an update, serialised LinuxContainerResources; empty: those of the config.
    resources: bytes = field(default=b"", repr=False)

    @property
    def state(self) -> "cri.ContainerState":
        """CREATED, RUNNING or EXITED, by the timestamps."""
        if self.finished_at:
            return cri.CONTAINER_EXITED
        return cri.CONTAINER_RUNNING if self.started_at else cri.CONTAINER_CREATED

    def image_mounts(self) -> dict[int, cri.Mount]:
        """Return the mounts that are images, by their index in the config."""
        return {index: mount for index, mount in enumerate(self.config.mounts) if mount.image.image}

    def image_key(self, index: int) -> str:
        """Return the snapshot key of the image that is mounted by that mount."""
        return f"{self.id}-image-{index}"

    def image_keys(self) -> list[str]:
        """Return the snapshot keys of all mounted images."""
        return [self.image_key(index) for index in self.image_mounts()]

    @classmethod
    def from_json(cls, value: dict[str, Any], config: bytes) -> Self:
        """Return the record that `to_json` and the config column describe."""
        value = _known(cls, value)
        value.update(
            config=cri.ContainerConfig.FromString(config),
            phase=Phase(value["phase"]),
            process=_process(value.get("process")),
            groups=tuple(value.get("groups", ())),
            volume_images=tuple(value.get("volume_images", ())),
            resources=base64.b64decode(value.get("resources", "")),
        )
        return cls(**value)
