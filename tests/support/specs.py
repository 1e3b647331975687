"""Inputs of the spec builders for unit tests: a host that answers from tables, requests that ask for little."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.errors import FailedPrecondition, NotFound
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import ContainerInput, Device, Edits, HostFacts, RuntimeFacts, SandboxFiles, SandboxInput

FILES = SandboxFiles("/pod/hostname", "/pod/hosts", "/pod/resolv.conf", "/pod/shm")


@dataclass
class TableHost:
    """A host in which only what is listed exists, but every path is its own real path unless linked."""

    nodes: dict[str, tuple[Device, ...]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    mounts: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    profiles: set[str] = field(default_factory=set)

    def devices(self) -> tuple[Device, ...]:
        return self.nodes.get("/dev", ())

    def device(self, path: str) -> tuple[Device, ...]:
        if path not in self.nodes:
            raise OSError(19, "not a device node", path)
        return self.nodes[path]

    def real_path(self, path: str) -> str:
        if path in self.missing:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.links.get(path, path)

    def exists(self, path: str) -> bool:
        return path not in self.missing

    def propagation(self, path: str) -> str:
        return self.mounts.get(path, "private")

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.files[path]

    def thermal_throttle_paths(self) -> tuple[str, ...]:
        return ("/sys/devices/system/cpu/cpu0/thermal_throttle",)

    def cgroup_options(self) -> tuple[str, ...]:
        return ("nsdelegate",)

    def apparmor_profile_loaded(self, name: str) -> bool:
        return name in self.profiles


@dataclass
class TableHardware:
    """A node with the devices and classes that are listed."""

    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    rdt_classes: set[str] = field(default_factory=set)
    denied_to_pods: set[str] = field(default_factory=set)
    devices: dict[str, Edits] = field(default_factory=dict)
    nodes: dict[str, Device] = field(default_factory=dict)

    @property
    def blockio_enabled(self) -> bool:
        return bool(self.classes)

    @property
    def rdt_enabled(self) -> bool:
        return bool(self.rdt_classes)

    def block_io(self, name: str) -> dict[str, Any]:
        if name not in self.classes:
            raise FailedPrecondition("no such class")
        return self.classes[name]

    def check_rdt_class(self, name: str, *, from_pod: bool) -> None:
        if name not in self.rdt_classes or (from_pod and name in self.denied_to_pods):
            raise FailedPrecondition("no such class")

    def edits(self, names: Sequence[str]) -> Edits:
        if missing := [name for name in names if name not in self.devices]:
            raise NotFound(f"CDI device {missing[0]} is not defined")
        found = Edits()
        for name in names:
            found += self.devices[name]
        return found

    def node(self, path: str) -> Device:
        if path not in self.nodes:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.nodes[path]


def host_facts(**changes: Any) -> HostFacts:
    """Return a cgroup v2 node with every privilege, changed as asked."""
    facts = HostFacts(host=TableHost(), capabilities=("CAP_CHOWN", "CAP_SYS_ADMIN"), hostname="node")
    return replace(facts, **changes)


def sandbox_input(**changes: Any) -> SandboxInput:
    """Return a pod that asks for nothing, changed as asked."""
    request = SandboxInput(
        id="pod",
        config=pod(),
        image_config={"config": {"Entrypoint": ["/pause"]}},
        image_name="pause:1",
        runtime=Runtime(),
        handler=RuntimeHandler(),
        facts=host_facts(),
        runtime_facts=RuntimeFacts(),
        netns_path="/run/netns/pod",
        files=FILES,
    )
    return replace(request, **changes)


def container_input(**changes: Any) -> ContainerInput:
    """Return a container that asks for nothing but a command, changed as asked."""
    request = ContainerInput(
        id="container",
        sandbox_id="pod",
        config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), command=["true"]),
        sandbox_config=pod(),
        image_config={},
        image_name="image:1",
        runtime=Runtime(),
        handler=RuntimeHandler(),
        facts=host_facts(),
        runtime_facts=RuntimeFacts(),
        sandbox_pid=42,
        files=FILES,
        hardware=TableHardware(),
        volumes_directory="/volumes",
    )
    return replace(request, **changes)


def pod() -> cri.PodSandboxConfig:
    """Return a pod with a name."""
    return cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="p", namespace="n", uid="u"))
