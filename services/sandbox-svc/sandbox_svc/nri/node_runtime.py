"""What the node supplies to plugins: its pods and containers as messages, and changes of containers that exist."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulkhead import metrics
from bulkhead.errors import BulkheadError
from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle, limits, validate
from sandbox_svc.nri import apply_resources, convert, convert_resources
from sandbox_svc.nri.runtime import Snapshot
from sandbox_svc.oci.model import Json
from sandbox_svc.store.entities import Container
from sandbox_svc.store.model import Model
from sandbox_svc.store.records import ContainerRecord, SandboxRecord

logger = logging.getLogger(__name__)

_ALIVE = (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING)


@dataclass(frozen=True)
class Controllers:
    """Which limits of memory the node has groups for, beside the plain one."""

    swap: bool = True
    hugepages: bool = True


class NodeRuntime:
    """Reads the model and the bundles; `sandbox_svc.nri.runtime.Runtime` says what plugins need it for."""

    def __init__(self, model: Model, bundles: Callable[[str], Path], controllers: Controllers) -> None:
        self._model, self._bundles, self._controllers = model, bundles, controllers

    def snapshot(self) -> Snapshot:
        """Return every pod, and every container that has not ended; one whose state is not known is left out."""
        return Snapshot(
            [self.pod(pod.record) for pod in self._model.pods() if not pod.uncertain],
            [self.container(found.record) for found in self._model.containers() if found.state in _ALIVE],
        )

    def pod(self, record: SandboxRecord) -> nri.PodSandbox:
        """Return a pod as a message."""
        return convert.pod(record, self._spec(record.id))

    def container(self, record: ContainerRecord, pid: int = 0) -> nri.Container:
        """Return a container as a message; pid is that of a process that is made and not yet recorded."""
        return convert.container(record, self._spec(record.id), pid)

    def _spec(self, ident: str) -> Json:
        """Return the spec of a bundle; {} for one that is gone."""
        try:
            return bundle.read(self._bundles(ident))
        except (OSError, ValueError):
            return {}

    def update_containers(self, updates: Sequence[nri.ContainerUpdate], deadline: float) -> list[nri.ContainerUpdate]:
        """Change the limits of containers that exist, and return the updates that failed and may not.

        A container that is unknown or has ended needs no limits any more, and so its update has not failed.
        """
        failed = []
        for update in updates:
            container = self._find(update.container_id)
            if container is None:
                continue
            try:
                if time.monotonic() > deadline:
                    raise TimeoutError("there was no time left for it")
                self.change(container, update.linux.resources)
            except (BulkheadError, OSError, ValueError) as error:
                metrics.ERRORS.labels("nri_update").inc()
                logger.warning("container %s: an update that a plugin wants failed: %s", container.id, error)
                if not update.ignore_failure and self._find(container.id) is not None:
                    failed.append(update)
        return failed

    def _find(self, ident: str) -> Container | None:
        try:
            found = self._model.container(ident)
        except BulkheadError:
            return None
        return found if found.id == ident and found.state in _ALIVE else None

    def change(
        self,
        container: Container,
        wanted: nri.LinuxResources,
        before: Callable[[Json], Json] = dict,
        shown: cri.LinuxContainerResources | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Set limits that plugins want over those that `before` makes of the present ones.

        `shown` is what the caller of an update asked for: the status shows it where plugins have not said otherwise.
        Rules for devices and classes stay as they are: they are settled when a container is made.
        """
        validate.no_nul(wanted, "NRI resources")

        def edit(found: Json) -> Json:
            made = before(found)
            apply_resources.limits(
                made, wanted, swap=self._controllers.swap, hugepages=self._controllers.hugepages, zeros=False
            )
            return made

        limits.change(container, self._bundles(container.id), edit, overlaid(shown, wanted), annotations)


def overlaid(shown: cri.LinuxContainerResources | None, wanted: nri.LinuxResources) -> cri.LinuxContainerResources:
    """Return the CRI's limits with plugins' wishes over them."""
    answer, wishes = cri.LinuxContainerResources(), convert_resources.to_cri(wanted)
    if shown is not None:
        answer.CopyFrom(shown)
    if wishes.hugepage_limits:
        del answer.hugepage_limits[:]
    answer.MergeFrom(wishes)
    return answer
