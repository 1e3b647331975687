"""What the node supplies to plugins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bulkhead.proto.containerd.nri_pb2 import Container, ContainerUpdate, PodSandbox


@dataclass(frozen=True)
class Snapshot:
    """Every pod and container at one moment, as plugins are told of them when they register."""

    pods: Sequence[PodSandbox] = ()
    containers: Sequence[Container] = ()


class Runtime(Protocol):
    """The node as plugins need it."""

    def snapshot(self) -> Snapshot:
        """Return all pods and containers; no operation of `Hooks.operation` is under way meanwhile."""

    def update_containers(self, updates: Sequence[ContainerUpdate], deadline: float) -> list[ContainerUpdate]:
        """Apply a plugin's updates to existing containers before `deadline` (monotonic) and return those that failed.

        One that asks to ignore failures is never among them. Nothing is raised for one container's sake.
        """
