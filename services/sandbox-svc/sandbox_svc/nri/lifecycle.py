"""What the RPCs tell plugins, in containerd's order; each method does nothing where nobody listens.

A plugin is told of a stop and of a removal once, whoever finds out first: the RPC or the container's own end.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.background import Background
from sandbox_svc.nri import convert, convert_resources
from sandbox_svc.nri.hooks import Hooks
from sandbox_svc.nri.node_runtime import NodeRuntime
from sandbox_svc.oci.model import Json
from sandbox_svc.store.entities import Container, Pod, Told
from sandbox_svc.store.records import ContainerRecord, SandboxRecord

logger = logging.getLogger(__name__)

#: Seconds for the updates of other containers that plugins want beside an operation.
UPDATES = 30.0
#: There is no more to be told of these.
_OVER = (Told.NOTHING, Told.REMOVED)


class Lifecycle:
    """The events of pods and containers; `operation` is held from an event to the record that shows its result."""

    def __init__(self, hooks: Hooks, runtime: NodeRuntime, background: Background) -> None:
        self.hooks, self.runtime = hooks, runtime
        self._background = background

    def operation(self) -> AbstractContextManager[None]:
        """Keep plugins from being synchronized meanwhile; taken after the locks of operations, and before `telling`."""
        return self.hooks.operation()

    def teardown(self) -> AbstractContextManager[None]:
        """Do as `operation` does, for what must be possible whatever a plugin does."""
        return self.hooks.teardown()

    def running(self, pod: Pod, record: SandboxRecord) -> None:
        """Tell of a pod that is about to be ready, described by `record`.

        Raises what must fail the creation; `pod_removed` then tells those who have heard of it.
        """
        pod.told = Told.MADE
        if self.hooks.active:
            self.hooks.run_pod_sandbox(self.runtime.pod(record))

    def pod_stopped(self, pod: Pod) -> None:
        """Tell that a pod is stopped."""
        if pod.told is not Told.MADE:
            return
        with self.teardown(), pod.telling:
            if pod.told is Told.MADE:
                with _anyway(f"the stop of pod {pod.id}"):
                    if self.hooks.active:
                        self.hooks.stop_pod_sandbox(self.runtime.pod(pod.record))
                pod.told = Told.STOPPED

    def pod_removed(self, pod: Pod) -> None:
        """Tell that a pod is removed, and before that of its stop."""
        if pod.told in _OVER:
            return
        with self.teardown(), pod.telling:
            self.pod_stopped(pod)
            if pod.told is Told.STOPPED:
                with _anyway(f"the removal of pod {pod.id}"):
                    if self.hooks.active:
                        self.hooks.remove_pod_sandbox(self.runtime.pod(pod.record))
                pod.told = Told.REMOVED

    def updating_pod(self, pod: Pod, request: cri.UpdatePodSandboxResourcesRequest) -> None:
        """Tell of a pod's new resources; raises what must fail the update."""
        if self.hooks.active:
            self.hooks.update_pod_sandbox(
                self.runtime.pod(pod.record),
                convert_resources.from_cri(request.overhead),
                convert_resources.from_cri(request.resources),
            )

    def updated_pod(self, pod: Pod) -> None:
        """Tell that a pod has its new resources."""
        if self.hooks.active:
            self.hooks.post_update_pod_sandbox(self.runtime.pod(pod.record))

    def creating(self, container: Container, record: ContainerRecord, spec: Json) -> nri.ContainerAdjustment | None:
        """Return plugins' adjustment of a container, described by `record`, after their updates of others.

        Raises what must fail the creation; `uncreated` then tells those who have heard of it.
        """
        container.told = Told.MADE
        if not self.hooks.active:
            return None
        pod = self.runtime.pod(container.pod.record)
        answer = self.hooks.create_container(pod, convert.container(record, spec))
        self._update_others(answer.update, f"the creation of container {container.id}")
        return answer.adjust

    def created(self, container: Container) -> None:
        """Tell that a container is created."""
        if self.hooks.active:
            self.hooks.post_create_container(*self._both(container))

    def uncreated(self, container: Container) -> None:
        """Tell that a creation failed which plugins have heard of: the container is stopped and removed to them."""
        self.removed(container)

    def starting(self, container: Container, pid: int) -> None:
        """Tell of a container about to start, whose process is there; raises what must fail the start."""
        if self.hooks.active:
            self.hooks.start_container(*self._both(container, pid))

    def started(self, container: Container) -> None:
        """Tell that a container was started."""
        if self.hooks.active:
            self.hooks.post_start_container(*self._both(container))

    def updating(self, container: Container, wanted: cri.LinuxContainerResources) -> nri.LinuxResources | None:
        """Return what plugins make of new limits, None for no change, after their updates of others.

        Raises what must fail the update.
        """
        if not self.hooks.active:
            return None
        result = self.hooks.update_container(*self._both(container), convert_resources.from_cri(wanted))
        self._update_others(result.others, f"the update of container {container.id}")
        return result.resources

    def updated(self, container: Container) -> None:
        """Tell that a container has its new limits."""
        if self.hooks.active:
            self.hooks.post_update_container(*self._both(container))

    def ended(self, entity: Pod | Container) -> None:
        """Take note that a process is at its end; plugins hear of a container's behind the caller's back."""
        if not isinstance(entity, Container):
            return
        if self.hooks.active:
            self._background.behind("nri_stop", self.stopped, entity)
        elif entity.told is Told.MADE:
            entity.told = Told.STOPPED

    def stopped(self, container: Container) -> None:
        """Tell that a container is stopped, and make the updates of others that plugins want then, as far as can be."""
        others: Sequence[nri.ContainerUpdate] = ()
        if container.told is not Told.MADE:
            return
        with self.teardown(), container.telling:
            if container.told is Told.MADE:
                with _anyway(f"the stop of container {container.id}"):
                    if self.hooks.active:
                        others = self.hooks.stop_container(*self._both(container))
                container.told = Told.STOPPED
        if others:
            self.runtime.update_containers(others, time.monotonic() + UPDATES)

    def removed(self, container: Container) -> None:
        """Tell that a container is removed, and before that of its stop."""
        if container.told in _OVER:
            return
        self.stopped(container)
        with self.teardown(), container.telling:
            if container.told is Told.STOPPED:
                with _anyway(f"the removal of container {container.id}"):
                    if self.hooks.active:
                        self.hooks.remove_container(*self._both(container))
                container.told = Told.REMOVED

    def _both(self, container: Container, pid: int = 0) -> tuple[nri.PodSandbox, nri.Container]:
        return self.runtime.pod(container.pod.record), self.runtime.container(container.record, pid)

    def _update_others(self, updates: Sequence[nri.ContainerUpdate], what: str) -> None:
        if updates and (failed := self.runtime.update_containers(updates, time.monotonic() + UPDATES)):
            names = ", ".join(update.container_id for update in failed)
            raise FailedPrecondition(f"{what}: NRI plugins want other limits for {names}, which could not be set")


@contextlib.contextmanager
def _anyway(what: str) -> Iterator[None]:
    """Log whatever goes wrong in the block: no mistake, ours included, keeps a pod from its end."""
    try:
        yield
    except Exception:
        logger.exception("NRI plugins are not told of %s", what)
