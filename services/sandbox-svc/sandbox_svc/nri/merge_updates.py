"""Plugins' updates of containers that exist, put together to one a container (pure).

The rules are those of the Go module (pkg/adaptation/result.go), but for the limit of processes, which is read there
from the request where the plugin's update is meant, so that a plugin cannot set it.
"""

from collections.abc import Iterable

from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd.nri_pb2 import ContainerUpdate, LinuxResources
from sandbox_svc.nri import merge_resources
from sandbox_svc.nri.owners import Owners


class Updates:
    """The updates that plugins ask for while one request is relayed."""

    def __init__(
        self, owners: Owners, *, creating: str = "", updating: str = "", request: LinuxResources | None = None
    ):
        """`creating` is a container that cannot be updated yet; `request` is what `updating` is asked to have."""
        self._owners, self._creating, self._updating = owners, creating, updating
        self._updates: dict[str, ContainerUpdate] = {}
        self.requested = LinuxResources()
        if request is not None:
            self.requested.CopyFrom(request)

    def apply(self, updates: Iterable[ContainerUpdate], plugin: str) -> None:
        """Add one plugin's updates in order; FailedPrecondition if two plugins set the same or the target is wrong.

        A conflict in an update that asks to ignore failures drops that update alone.
        """
        for update in updates:
            collected = self._collected(update, plugin)
            try:
                self._merge(collected, update, plugin)
            except FailedPrecondition:
                if not update.ignore_failure:
                    raise

    @property
    def others(self) -> list[ContainerUpdate]:
        """The updates of containers other than the one that the request updates, in the order they came up."""
        return [update for update in self._updates.values() if update.container_id != self._updating]

    def _collected(self, update: ContainerUpdate, plugin: str) -> ContainerUpdate:
        target = update.container_id
        if self._creating and target == self._creating:
            raise FailedPrecondition(f'NRI plugin "{plugin}" asked to update container {target} during its creation')
        collected = self._updates.get(target)
        if collected is None:
            collected = ContainerUpdate(container_id=target, ignore_failure=update.ignore_failure)
            self._updates[target] = collected
            collected.linux.resources.SetInParent()
        else:
            collected.ignore_failure = collected.ignore_failure and update.ignore_failure
        return collected

    def _merge(self, collected: ContainerUpdate, update: ContainerUpdate, plugin: str) -> None:
        own = bool(self._updating) and update.container_id == self._updating
        # On a copy: a conflict in the middle must leave nothing behind where failures are ignored.
        resources = LinuxResources()
        resources.CopyFrom(self.requested if own else collected.linux.resources)
        merge_resources.merge(update.linux.resources, (resources,), self._owners, update.container_id, plugin)
        collected.linux.resources.CopyFrom(resources)
        if own:
            self.requested.CopyFrom(resources)
