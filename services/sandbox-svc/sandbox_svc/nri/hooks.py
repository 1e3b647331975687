"""The events as methods: each asks the plugins in turn, and returns what they together want."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from bulkhead.config.model import Nri
from bulkhead.errors import FailedPrecondition, NotFound
from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.containerd.nri_pb2 import (
    Container,
    ContainerUpdate,
    CreateContainerResponse,
    Event,
    LinuxResources,
    PodSandbox,
)
from sandbox_svc.nri import launch, validator
from sandbox_svc.nri.events import KINDS
from sandbox_svc.nri.listener import Listener
from sandbox_svc.nri.merge import Creation
from sandbox_svc.nri.merge_updates import Updates
from sandbox_svc.nri.owners import Owners
from sandbox_svc.nri.plugin import Plugin
from sandbox_svc.nri.registry import SYNC_WAIT, Registry
from sandbox_svc.nri.relay import REQUESTS, Relay
from sandbox_svc.nri.runtime import Runtime as Runtime
from sandbox_svc.nri.runtime import Snapshot as Snapshot

logger = logging.getLogger(__name__)

#: Seconds that plugins have for their Shutdown.
SHUTDOWN = 1.0
#: What the default validator is called among plugins.
_BUILT_IN = ("00", "default-validator")


@dataclass(frozen=True)
class UpdateContainerResult:
    """What plugins made of an update: the resources to set on the container itself, and updates of others."""

    resources: LinuxResources
    others: list[ContainerUpdate] = field(default_factory=list)


class Hooks:
    """The events, one method each. `active` tells whether calling them can have any effect.

    What may still be refused raises a BulkheadError, which must fail the operation; what cannot be refused any more
    (post_…, stop_…, remove_…) never raises: a pod can always be taken down. Messages are not changed.
    """

    def __init__(self, config: Nri, runtime: Runtime, version: str) -> None:
        self._config = config
        self._registry = Registry(config, runtime, version)
        self._relay = Relay(self._registry)
        self._listener = Listener(config.socket_path, self._registry)

    @property
    def active(self) -> bool:
        """Whether a plugin is registered or about to be, or something is validated; if not, build no message."""
        if self._registry.plugins or self._registry.gate.closed:
            return True
        return self._config.default_validator.enable and not self._config.disable

    def start(self) -> None:
        """Start pre-registered plugins, synchronize them, and accept others; a plugin's failure is only logged.

        To be called in the main thread, at whose end the plugins started here are killed. It waits until those are
        synchronized, which they are one after the other.
        """
        if self._config.disable:
            logger.info("NRI is disabled")
            return
        started = []
        for program in launch.discover(self._config.plugin_path, self._config.plugin_config_path):
            try:
                plugin = launch.start(program, self._registry)
            except NotFound as error:
                logger.error("NRI plugin %s is not started: %s", program.path, error)
                continue
            thread = threading.Thread(target=self._registry.admit, args=(plugin, str(program.path)), daemon=True)
            thread.start()
            started.append(thread)
        for thread in started:
            thread.join()
        if self._config.disable_connections:
            logger.info("NRI: only plugins of %s are used", self._config.plugin_path)
        else:
            self._listener.start()
        for line in self.notes():
            logger.warning("%s", line)

    def stop(self) -> None:
        """Close the socket, tell plugins to shut down and end those that were started here."""
        self._listener.stop()
        self._registry.stop(SHUTDOWN)

    def notes(self) -> list[str]:
        """Return what an operator should know: a socket that is another runtime's, required plugins not there."""
        rules = self._config.default_validator
        required = rules.required_plugins if rules.enable and not self._config.disable else ()
        absent = validator.missing(required, self._present(self._registry.plugins))
        lines = [f"required NRI plugin {name} is not connected: pods and containers are refused" for name in absent]
        return [self._listener.problem, *lines] if self._listener.problem else lines

    def operation(self) -> contextlib.AbstractContextManager[None]:
        """Keep plugins from being synchronized between an event and the moment the node shows its result.

        A thread may enter again what it is in. Whoever needs a lock both inside and outside takes the lock first.
        """
        return self._registry.gate.operation(SYNC_WAIT)

    def teardown(self) -> contextlib.AbstractContextManager[None]:
        """Do as `operation` does, for what cannot be refused: a synchronization that does not end stops nothing."""
        return self._registry.gate.operation(SYNC_WAIT, anyway=True)

    def run_pod_sandbox(self, pod: PodSandbox) -> None:
        """Tell plugins of a pod about to be ready; raises what must fail the operation."""
        self._request(Event.RUN_POD_SANDBOX, nri.RunPodSandboxRequest(pod=pod), pod, None)

    def update_pod_sandbox(self, pod: PodSandbox, overhead: LinuxResources, resources: LinuxResources) -> None:
        """Tell plugins of a pod's new resources; raises what must fail the operation."""
        request = nri.UpdatePodSandboxRequest(pod=pod, overhead_linux_resources=overhead, linux_resources=resources)
        self._request(Event.UPDATE_POD_SANDBOX, request, pod, None)

    def post_update_pod_sandbox(self, pod: PodSandbox) -> None:
        """Tell plugins that a pod's resources were updated."""
        self._relay.tell(Event.POST_UPDATE_POD_SANDBOX, nri.PostUpdatePodSandboxRequest(pod=pod))

    def stop_pod_sandbox(self, pod: PodSandbox) -> None:
        """Tell plugins that a pod is stopped."""
        self._relay.tell(Event.STOP_POD_SANDBOX, nri.StopPodSandboxRequest(pod=pod))

    def remove_pod_sandbox(self, pod: PodSandbox) -> None:
        """Tell plugins that a pod is removed."""
        self._relay.tell(Event.REMOVE_POD_SANDBOX, nri.RemovePodSandboxRequest(pod=pod))

    def create_container(self, pod: PodSandbox, container: Container) -> CreateContainerResponse:
        """Collect plugins' adjustments of a container and their updates of others; raises what must fail it."""
        event = Event.CREATE_CONTAINER
        creation = Creation(nri.CreateContainerRequest(pod=pod, container=container))
        with self._relay.turn(event):
            plugins = self._registry.plugins
            required = self._required(event, plugins, pod, container.name)
            for plugin in plugins:
                if plugin.subscribes(event):
                    answer = self._relay.ask(plugin, event, creation.request, required=_among(plugin, required))
                    if answer is not None:
                        with _conflicts(event):
                            creation.apply(answer, plugin.name)
            response = creation.response()
            with _conflicts(Event.VALIDATE_CONTAINER_ADJUSTMENT):
                self._validate(plugins, pod, container, response, creation.owners)
        return response

    def post_create_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins that a container was created."""
        self._relay.tell(Event.POST_CREATE_CONTAINER, nri.PostCreateContainerRequest(pod=pod, container=container))

    def start_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins of a container about to start; raises what must fail the operation."""
        request = nri.StartContainerRequest(pod=pod, container=container)
        self._request(Event.START_CONTAINER, request, pod, container.name)

    def post_start_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins that a container was started."""
        self._relay.tell(Event.POST_START_CONTAINER, nri.PostStartContainerRequest(pod=pod, container=container))

    def update_container(
        self, pod: PodSandbox, container: Container, resources: LinuxResources
    ) -> UpdateContainerResult:
        """Let plugins change the resources asked for, and those of others; raises what must fail the operation."""
        event = Event.UPDATE_CONTAINER
        updates = Updates(Owners(), updating=container.id, request=resources)
        with self._relay.turn(event):
            plugins = self._registry.plugins
            required = self._required(event, plugins, pod, container.name)
            for plugin in plugins:
                if plugin.subscribes(event):
                    request = nri.UpdateContainerRequest(
                        pod=pod, container=container, linux_resources=updates.requested
                    )
                    answer = self._relay.ask(plugin, event, request, required=_among(plugin, required))
                    if answer is not None:
                        with _conflicts(event):
                            updates.apply(answer.update, plugin.name)
        return UpdateContainerResult(updates.requested, updates.others)

    def post_update_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins that a container was updated."""
        self._relay.tell(Event.POST_UPDATE_CONTAINER, nri.PostUpdateContainerRequest(pod=pod, container=container))

    def stop_container(self, pod: PodSandbox, container: Container) -> list[ContainerUpdate]:
        """Tell plugins that a container is stopped and return their updates of others."""
        event = Event.STOP_CONTAINER
        updates = Updates(Owners())
        request = nri.StopContainerRequest(pod=pod, container=container)
        with self._relay.quietly(event), self._relay.turn(event, anyway=True):
            for plugin in self._registry.plugins:
                if plugin.subscribes(event):
                    with self._relay.quietly(event):
                        answer = self._relay.ask(plugin, event, request)
                        if answer is not None:
                            updates.apply(answer.update, plugin.name)
        return updates.others

    def remove_container(self, pod: PodSandbox, container: Container) -> None:
        """Tell plugins that a container is removed."""
        self._relay.tell(Event.REMOVE_CONTAINER, nri.RemoveContainerRequest(pod=pod, container=container))

    def _request(self, event: int, request: Message, pod: PodSandbox, container: str | None) -> None:
        """Relay an event that plugins may refuse and have nothing to add to."""
        with self._relay.turn(event):
            plugins = self._registry.plugins
            required = self._required(event, plugins, pod, container)
            for plugin in plugins:
                if plugin.subscribes(event):
                    self._relay.ask(plugin, event, request, required=_among(plugin, required))

    def _required(self, event: int, plugins: tuple[Plugin, ...], pod: PodSandbox, container: str | None) -> list[str]:
        """Return the plugins that must handle a request; FailedPrecondition if one of them is not there."""
        required = validator.required_plugins(self._config.default_validator, pod, container)
        absent = validator.missing(required, self._present(plugins))
        if absent:
            REQUESTS.labels(KINDS[event].method, "missing").inc()
            which = ", ".join(f'"{name}"' for name in absent)
            raise FailedPrecondition(f"{KINDS[event].method}: required NRI plugin {which} is not connected")
        return required

    def _present(self, plugins: tuple[Plugin, ...]) -> list[tuple[str, str]]:
        return [*((plugin.index, plugin.base) for plugin in plugins), _BUILT_IN]

    def _validate(
        self,
        plugins: tuple[Plugin, ...],
        pod: PodSandbox,
        container: Container,
        response: CreateContainerResponse,
        owners: Owners,
    ) -> None:
        """Let the default validator and the validating plugins see the outcome; any of them may refuse it."""
        event = Event.VALIDATE_CONTAINER_ADJUSTMENT
        rules = self._config.default_validator
        if rules.enable:
            profile = container.linux.seccomp_profile if container.linux.HasField("seccomp_profile") else None
            validator.check(rules, response.adjust, owners, container.id, profile)
        validators = [plugin for plugin in plugins if plugin.subscribes(event)]
        if not validators:
            return
        request = nri.ValidateContainerAdjustmentRequest(
            pod=pod,
            container=container,
            adjust=response.adjust,
            update=response.update,
            owners=owners.message(),
            plugins=[nri.PluginInstance(name=base, index=index) for index, base in self._present(plugins)],
        )
        for plugin in validators:
            verdict: Any = self._relay.ask(plugin, event, request, required=True)
            if verdict.reject:
                reason = verdict.reason[:1000] or "no reason given"
                raise FailedPrecondition(f"NRI plugin {plugin.name} rejects the container: {reason}")


def _among(plugin: Plugin, names: list[str]) -> bool:
    return plugin.base in names or plugin.name in names


@contextlib.contextmanager
def _conflicts(event: int) -> Iterator[None]:
    """Count what is refused here rather than by a plugin's error."""
    try:
        yield
    except FailedPrecondition:
        REQUESTS.labels(KINDS[event].method, "rejected").inc()
        raise
