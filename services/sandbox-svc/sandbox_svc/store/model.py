"""The read model: every pod and container that exists, found by id, prefix or filter, without touching the disk."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from bulkhead.errors import InvalidArgument, NotFound
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.records import Phase
from sandbox_svc.task.link import Link

T = TypeVar("T", Pod, Container)


class Model:
    """The pods and containers by id; those being created or removed are in it, but never listed."""

    def __init__(self, observe: Callable[[Any, Any, Any], None] = lambda entity, old, new: None) -> None:
        #: Told of every change of what is in the model (Entity.observe).
        self._observe = observe
        self._lock = threading.Lock()
        self._pods: dict[str, Pod] = {}
        self._containers: dict[str, Container] = {}

    def add_pod(self, pod: Pod) -> None:
        """Take a pod in."""
        pod.observe = self._observe
        with self._lock:
            self._pods[pod.id] = pod

    def add_container(self, container: Container) -> None:
        """Take a container in, and into its pod."""
        container.observe = self._observe
        with self._lock:
            self._containers[container.id] = container
            container.pod.containers[container.id] = container

    def drop_pod(self, pod: Pod) -> None:
        """Forget a pod."""
        with self._lock:
            self._pods.pop(pod.id, None)

    def drop_container(self, container: Container) -> None:
        """Forget a container."""
        with self._lock:
            self._containers.pop(container.id, None)
            container.pod.containers.pop(container.id, None)

    def pod(self, ident: str) -> Pod:
        """Return the pod with that id or unique prefix; NotFound, or InvalidArgument if the prefix fits several."""
        return _find(self._pods, ident, "pod sandbox", self._lock)

    def container(self, ident: str) -> Container:
        """Return the container with that id or unique prefix; NotFound, or InvalidArgument if it fits several."""
        return _find(self._containers, ident, "container", self._lock)

    def pods(self) -> list[Pod]:
        """Return the pods that exist, oldest first."""
        with self._lock:
            return [p for p in self._pods.values() if p.record.phase is Phase.PRESENT]

    def everything(self) -> list[Pod]:
        """Return every pod, those being created or removed included."""
        with self._lock:
            return list(self._pods.values())

    def containers(self) -> list[Container]:
        """Return the containers that exist, oldest first."""
        with self._lock:
            return [c for c in self._containers.values() if c.record.phase is Phase.PRESENT]

    def containers_of(self, pod: Pod) -> list[Container]:
        """Return every container of a pod, half-made ones included."""
        with self._lock:
            return list(pod.containers.values())

    def link_to(self, address: str) -> Link | None:
        """Return the connection that a pod has to the shim at that address."""
        with self._lock:
            links = [p.link for p in self._pods.values()]
        return next((link for link in links if link is not None and link.binding.address == address), None)

    def keys(self) -> dict[str, bool]:
        """Return the snapshot keys in use: the ids of all pods and containers, and those of images that are mounted.

        Each tells whether its snapshot is there: not necessarily while its pod or container is being made or removed.
        """
        with self._lock:
            pods = [pod.record for pod in self._pods.values()]
            containers = [container.record for container in self._containers.values()]
        keys = {record.id: record.phase is Phase.PRESENT for record in pods}
        for record in containers:
            there = record.phase is Phase.PRESENT
            keys.update(dict.fromkeys((record.id, *record.image_keys()), there))
        return keys


def _find(table: Mapping[str, T], ident: str, kind: str, lock: threading.Lock) -> T:
    if not ident:
        raise InvalidArgument(f"{kind} id is empty, expected 64 hex digits or a unique prefix of them")
    with lock:
        if found := table.get(ident):
            if found.record.phase is Phase.PRESENT:
                return found
            raise NotFound(f"{kind} {ident!r} is {found.record.phase}")
        matches = [e for key, e in table.items() if key.startswith(ident) and e.record.phase is Phase.PRESENT]
    if len(matches) > 1:
        raise InvalidArgument(f"{kind} id {ident!r} is the beginning of {len(matches)} ids, expected a unique one")
    if not matches:
        raise NotFound(f"{kind} {ident!r} does not exist")
    return matches[0]


def carries(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Tell whether all labels of the selector are there with their values."""
    return all(labels.get(key) == value for key, value in selector.items())


def select_pods(pods: Iterable[Pod], chosen: cri.PodSandboxFilter) -> list[Pod]:
    """Return the pods that pass a filter: the beginning of the id, the state, the labels."""
    return [
        pod
        for pod in pods
        if pod.id.startswith(chosen.id)
        and (not chosen.HasField("state") or pod.state == chosen.state.state)
        and carries(pod.record.config.labels, chosen.label_selector)
    ]


def select_containers(containers: Iterable[Container], chosen: cri.ContainerFilter) -> list[Container]:
    """Return the containers that pass a filter: the beginnings of both ids, the state, the labels."""
    return [
        container
        for container in containers
        if container.id.startswith(chosen.id)
        and container.record.sandbox_id.startswith(chosen.pod_sandbox_id)
        and (not chosen.HasField("state") or container.state == chosen.state.state)
        and carries(container.record.config.labels, chosen.label_selector)
    ]
