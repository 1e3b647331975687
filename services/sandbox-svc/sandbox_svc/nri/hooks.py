"""What the RPCs of sandbox-svc tell plugins, and what they get back: the only module of this package they import."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bulkhead.config.model import Nri
from bulkhead.proto.containerd.nri_pb2 import (
    Container,
    ContainerUpdate,
    CreateContainerResponse,
    LinuxResources,
    PodSandbox,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Every pod and container at one moment, as plugins are told of them when they register."""

    pods: Sequence[PodSandbox] = ()
    containers: Sequence[Container] = ()


@dataclass(frozen=True)
class UpdateContainerResult:
    """What plugins made of an update: the resources to set on the container itself, and updates of others."""

    resources: LinuxResources
    others: list[ContainerUpdate] = field(default_factory=list)


class Runtime(Protocol):
    """What the node supplies to plugins."""

    def snapshot(self) -> Snapshot:
        """Return all pods and containers; no operation of `Hooks.operation` is under way meanwhile."""

    def update_containers(self, updates: Sequence[ContainerUpdate], deadline: float) -> list[ContainerUpdate]:
        """Apply a plugin's updates to existing containers before `deadline` (monotonic) and return those that failed.

        One that asks to ignore failures is never among them. Nothing is raised for one container's sake.
        """


class Hooks:
    """The events, one method each. `active` tells whether calling them can have any effect."""

    def __init__(self, config: Nri, runtime: Runtime, version: str) -> None:
        self._config, self._runtime, self._version = config, runtime, version

    @property
    def active(self) -> bool:
        """Whether a plugin is registered or something is validated; if not, no message needs to be built."""
        return False

    def start(self) -> None:
        """Start pre-registered plugins, synchronize them, and accept others; a plugin's failure is only logged."""

    def stop(self) -> None:
        """Close the socket, tell plugins to shut down and end those that were started here."""

    def notes(self) -> list[str]:
        """Return what an operator should know: a socket that is another runtime's, required plugins not there."""
        return []

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Keep plugins from being synchronized between an event and the moment the node shows its result."""
        yield

    def run_pod_sandbox(self, pod: PodSandbox) -> None:
        """Tell plugins of a pod about to be ready; raises what must fail the operation."""

    def update_pod_sandbox(self, pod: PodSandbox, overhead: LinuxResources, resources: LinuxResources) -> None:
        """Tell plugins of a pod's new resources; raises what must fail the operation."""

    def post_update_pod_sandbox(self, pod: PodSandbox) -> None:
        """Tell plugins that a pod's resources were updated."""

    def stop_pod_sandbox(self, pod: PodSandbox) -> None:
        """Tell plugins that a pod is stopped."""

    def remove_pod_sandbox(self, pod: PodSandbox) -> None:
        """Tell plugins that a pod is removed."""

    def create_container(self, pod: PodSandbox, container: Container) -> CreateContainerResponse:
        """Collect plugins' adjustments of a container and their updates of others; raises what must fail it."""
        return CreateContainerResponse()

    def post_create_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins that a container was created."""

    def start_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins of a container about to start; raises what must fail the operation."""

    def post_start_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins that a container was started."""

    def update_container(
        self, pod: PodSandbox, container: Container, resources: LinuxResources
    ) -> UpdateContainerResult:
        """Let plugins change the resources asked for, and those of others; raises what must fail the operation."""
        return UpdateContainerResult(resources)

    def post_update_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins that a container was updated."""

    def stop_container(self, pod: PodSandbox, container: Container) -> list[ContainerUpdate]:
        """Tell plugins that a container is stopped and return their updates of others."""
        return []

    def remove_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins that a container is removed."""
