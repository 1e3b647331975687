"""Plugins' adjustments of a container that is being created, put together to one (pure).

The rules are those of the Go module (pkg/adaptation/result.go): plugins are asked in the order of their indices, each
sees the container as those before it left it, and two of them cannot set the same. Where the Go module forgets what a
plugin asked for, Bulkhead does not: the removal of an environment variable or a device of the container reaches the
result, and an annotation, sysctl or network device that a plugin set is gone from it once a later one removes it.
"""

from collections.abc import Callable, Iterable
from typing import Any

from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.containerd.nri_pb2 import (
    ContainerAdjustment,
    CreateContainerRequest,
    CreateContainerResponse,
    Field,
)
from sandbox_svc.nri import merge_resources
from sandbox_svc.nri.keys import removal
from sandbox_svc.nri.merge_updates import Updates
from sandbox_svc.nri.owners import Owners

_HOOKS = ("prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop")
_RDT = (
    ("clos_id", Field.RdtClosID),
    ("schemata", Field.RdtSchemata),
    ("enable_monitoring", Field.RdtEnableMonitoring),
)


class Creation:
    """What plugins have made of one CreateContainer so far.

    `request` is what the next plugin is asked, a copy of the caller's; `adjust` is what the node is to do.
    """

    def __init__(self, request: CreateContainerRequest) -> None:
        self.request = CreateContainerRequest()
        self.request.CopyFrom(request)
        self.adjust = ContainerAdjustment()
        self.owners = Owners()
        self._id = request.container.id
        self._updates = Updates(self.owners, creating=self._id)

    def apply(self, response: CreateContainerResponse, plugin: str) -> None:
        """Add one plugin's answer; FailedPrecondition names the field that two plugins set."""
        if response.HasField("adjust"):
            self._adjust(response.adjust, plugin)
        self._updates.apply(response.update, plugin)

    def response(self) -> CreateContainerResponse:
        """Return everything that plugins asked for."""
        return CreateContainerResponse(adjust=self.adjust, update=self._updates.others)

    def _adjust(self, wish: ContainerAdjustment, plugin: str) -> None:
        container, adjust = self.request.container, self.adjust
        self._mapping(wish.annotations, adjust.annotations, container.annotations, Field.Annotations, plugin)
        self._entries(wish.mounts, adjust.mounts, container.mounts, "destination", Field.Mounts, plugin)
        self._env(wish.env, plugin)
        self._args(wish.args, plugin)
        self._hooks(wish, plugin)
        if wish.HasField("linux"):
            self._linux(wish.linux, plugin)
        for limit in wish.rlimits:
            self.owners.claim(self._id, Field.Rlimits, plugin, limit.type)
            _replace(container.rlimits, limit, lambda present, wanted=limit: present.type == wanted.type)  # type: ignore[misc]
            adjust.rlimits.append(limit)
        for device in wish.CDI_devices:
            self.owners.claim(self._id, Field.CdiDevices, plugin, device.name)
            adjust.CDI_devices.append(device)

    def _linux(self, wish: nri.LinuxContainerAdjustment, plugin: str) -> None:
        linux, adjust = self.request.container.linux, self.adjust.linux
        self._entries(wish.devices, adjust.devices, linux.devices, "path", Field.Devices, plugin)
        if wish.HasField("resources"):
            targets = (linux.resources, adjust.resources)
            merge_resources.merge(wish.resources, targets, self.owners, self._id, plugin)
            for target in targets:
                target.devices.extend(wish.resources.devices)
        if wish.cgroups_path:
            self.owners.claim(self._id, Field.CgroupsPath, plugin)
            linux.cgroups_path = adjust.cgroups_path = wish.cgroups_path
        self._whole("oom_score_adj", Field.OomScoreAdj, wish, plugin)
        self._whole("io_priority", Field.IoPriority, wish, plugin)
        self._whole("seccomp_policy", Field.SeccompPolicy, wish, plugin)
        self._namespaces(wish.namespaces, plugin)
        self._mapping(wish.sysctl, adjust.sysctl, linux.sysctl, Field.Sysctl, plugin)
        self._mapping(wish.net_devices, adjust.net_devices, linux.net_devices, Field.LinuxNetDevices, plugin)
        self._whole("scheduler", Field.LinuxSched, wish, plugin)
        if wish.HasField("rdt"):
            self._rdt(wish.rdt, plugin)
        self._whole("memory_policy", Field.MemoryPolicy, wish, plugin)

    def _whole(self, name: str, field: Field, wish: nri.LinuxContainerAdjustment, plugin: str) -> None:
        """Replace one value; the next plugin sees it unless the protocol does not show it in containers."""
        if wish.HasField(name):
            self.owners.claim(self._id, field, plugin)
            for target in (self.adjust.linux, self.request.container.linux):
                if name in target.DESCRIPTOR.fields_by_name:
                    getattr(target, name).CopyFrom(getattr(wish, name))

    def _mapping(self, wish: Any, adjust: Any, present: Any, field: Field, plugin: str) -> None:
        """Merge a map whose keys may be marked for removal; "remove and set" is one plugin's way to replace."""
        for key in sorted(wish):
            bare, marked = removal(key)
            if marked:
                _put(adjust, key, type(wish[key])())
                if bare in wish:
                    self.owners.clear(self._id, field, plugin, bare)
                for entries in (adjust, present):
                    if bare in entries:
                        del entries[bare]
        for key in sorted(key for key in wish if not removal(key)[1]):
            self.owners.claim(self._id, field, plugin, key)
            _put(present, key, wish[key])
            _put(adjust, key, wish[key])

    def _entries(self, wish: Any, adjust: Any, present: Any, key: str, field: Field, plugin: str) -> None:
        """Merge a list of messages with a key: mounts by destination, devices by path."""
        added = [item for item in wish if not removal(getattr(item, key))[1]]
        removed = {removal(getattr(item, key))[0]: item for item in wish if removal(getattr(item, key))[1]}
        changed = {getattr(item, key) for item in added}
        for item in adjust:
            if getattr(item, key) in removed:
                self.owners.clear(self._id, field, plugin, getattr(item, key))
        _keep(adjust, lambda item: getattr(item, key) not in removed)
        _keep(present, lambda item: getattr(item, key) not in removed and getattr(item, key) not in changed)
        for item in added:
            self.owners.claim(self._id, field, plugin, getattr(item, key))
            adjust.append(item)
        adjust.extend(item for name, item in removed.items() if name not in changed)
        present.extend(added)

    def _env(self, wish: Iterable[nri.KeyValue], plugin: str) -> None:
        """Merge environment variables, which the container has as "NAME=value" and the adjustment as pairs."""
        pairs = [_pair(variable) for variable in self.request.container.env]
        self._entries(wish, self.adjust.env, pairs, "key", Field.Env, plugin)
        self.request.container.env[:] = [f"{pair.key}={pair.value}" for pair in pairs]

    def _args(self, args: Any, plugin: str) -> None:
        """Replace the command; an empty first argument lets a plugin replace what another one set."""
        if not args:
            return
        wanted = list(args)
        if not wanted[0]:
            self.owners.clear(self._id, Field.Args, plugin)
            wanted = wanted[1:]
        self.owners.claim(self._id, Field.Args, plugin)
        self.adjust.args[:] = wanted
        self.request.container.args[:] = wanted

    def _hooks(self, wish: ContainerAdjustment, plugin: str) -> None:
        """Append hooks: any number of plugins may have some."""
        if any(getattr(wish.hooks, stage) for stage in _HOOKS):
            self.owners.accumulate(self._id, Field.OciHooks, plugin)
            for stage in _HOOKS:
                for hooks in (self.adjust.hooks, self.request.container.hooks):
                    getattr(hooks, stage).extend(getattr(wish.hooks, stage))

    def _namespaces(self, wish: Iterable[nri.LinuxNamespace], plugin: str) -> None:
        for namespace in wish:
            kind, marked = removal(namespace.type)
            self.owners.claim(self._id, Field.Namespace, plugin, kind)
            _keep(self.request.container.linux.namespaces, lambda item, kind=kind: item.type != kind)  # type: ignore[misc]
            if not marked:
                self.request.container.linux.namespaces.append(namespace)
            self.adjust.linux.namespaces.append(namespace)

    def _rdt(self, wish: nri.LinuxRdt, plugin: str) -> None:
        adjust = self.adjust.linux.rdt
        if wish.remove:
            for _, field in _RDT:
                self.owners.clear(self._id, field, plugin)
            adjust.Clear()
            adjust.remove = True
        for name, field in _RDT:
            if wish.HasField(name):
                self.owners.claim(self._id, field, plugin)
                getattr(adjust, name).CopyFrom(getattr(wish, name))
                adjust.remove = False


def _put(target: Any, key: str, value: Any) -> None:
    """Set an entry of a map of strings or of messages."""
    if isinstance(value, str):
        target[key] = value
    else:
        target[key].CopyFrom(value)


def _pair(variable: str) -> nri.KeyValue:
    name, _, value = variable.partition("=")
    return nri.KeyValue(key=name, value=value)


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    kept = [item for item in items if wanted(item)]
    del items[:]
    items.extend(kept)


def _replace(items: Any, item: Any, same: Callable[[Any], bool]) -> None:
    _keep(items, lambda present: not same(present))
    items.append(item)
