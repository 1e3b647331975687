"""The plugins that are registered, in the order in which they are asked."""

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Sequence

from prometheus_client import Gauge

from bulkhead.config.model import Nri
from bulkhead.errors import BulkheadError
from bulkhead.proto.containerd.nri_pb2 import ContainerUpdate
from sandbox_svc.nri.gate import Gate
from sandbox_svc.nri.plugin import Plugin
from sandbox_svc.nri.runtime import Runtime

logger = logging.getLogger(__name__)

PLUGINS = Gauge("bulkhead_nri_plugins", "NRI plugins that are registered and synchronized.")
#: Seconds that a plugin's synchronization waits for the operations under way, and they for it.
SYNC_WAIT = 30.0
#: Seconds that the updates of one request of a plugin may take.
UPDATE_TIME = 30.0


class Registry:
    """Plugins come by `admit` and go by `drop` or when their connection ends; `plugins` is never changed in place."""

    def __init__(self, config: Nri, runtime: Runtime, version: str) -> None:
        self.gate = Gate()
        #: By index, those of one index in the order they came.
        self.plugins: tuple[Plugin, ...] = ()
        self._config, self._runtime, self._version = config, runtime, version
        self._lock = threading.Lock()
        self._stopping = False

    def plugin(
        self,
        sock: socket.socket,
        *,
        index: str = "",
        base: str = "",
        settings: str = "",
        process: subprocess.Popen[bytes] | None = None,
    ) -> Plugin:
        """Return a plugin on a connected socket, which it takes over; it is not asked before it is admitted."""
        return Plugin(
            sock,
            self._config,
            self._version,
            self._update,
            self.drop,
            index=index,
            base=base,
            settings=settings,
            process=process,
        )

    def admit(self, plugin: Plugin, peer: str) -> bool:
        """Let a plugin register, synchronize it and add it; False, with a line in the log, if it cannot be used.

        Bounded by SYNC_WAIT, plugin_request_timeout, and plugin_registration_timeout for each of its other answers.
        """
        try:
            plugin.begin()
            with self.gate.alone(SYNC_WAIT):
                state = self._runtime.snapshot()
                updates = plugin.synchronize(state.pods, state.containers)
                self._add(plugin)
        except BulkheadError as error:
            logger.warning("NRI plugin %s (%s) is not used: %s", plugin.name, peer, error)
            self.drop(plugin)
            return False
        except Exception:
            logger.exception("NRI plugin %s (%s) is not used", plugin.name, peer)
            self.drop(plugin)
            return False
        if plugin.closed:
            self.drop(plugin)
            return False
        logger.info(
            "NRI plugin %s (%s) is synchronized with %d pods and %d containers; plugins in order: %s",
            plugin.name,
            peer,
            len(state.pods),
            len(state.containers),
            ", ".join(one.name for one in self.plugins),
        )
        if updates:
            # Outside the gate: whoever holds a container may be waiting to pass it.
            self._log_failed(plugin, self._update(updates))
        return True

    def drop(self, plugin: Plugin) -> None:
        """Close a plugin, forget it, and end its process if it was started here; a second time does nothing more."""
        with self._lock:
            known = plugin in self.plugins
            self.plugins = tuple(one for one in self.plugins if one is not plugin)
            PLUGINS.set(len(self.plugins))
        if known and not self._stopping:
            logger.warning("NRI plugin %s is gone", plugin.name)
        plugin.close()
        if plugin.started_here:
            threading.Thread(target=plugin.end_process, name=f"nri end {plugin.name}", daemon=True).start()

    def stop(self, timeout: float) -> None:
        """Tell all plugins to shut down, at once, and end those that were started here."""
        self._stopping = True
        threads = [threading.Thread(target=plugin.shut_down, args=(timeout,), daemon=True) for plugin in self.plugins]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for plugin in self.plugins:
            self.drop(plugin)

    def _add(self, plugin: Plugin) -> None:
        with self._lock:
            self.plugins = tuple(sorted((*self.plugins, plugin), key=lambda one: one.index))
            PLUGINS.set(len(self.plugins))

    def _update(self, updates: Sequence[ContainerUpdate]) -> list[ContainerUpdate]:
        return self._runtime.update_containers(updates, time.monotonic() + UPDATE_TIME)

    def _log_failed(self, plugin: Plugin, failed: Sequence[ContainerUpdate]) -> None:
        for update in failed:
            logger.warning(
                "NRI plugin %s: container %s could not be updated as it asked", plugin.name, update.container_id
            )
