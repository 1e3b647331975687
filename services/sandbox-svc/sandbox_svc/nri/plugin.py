"""One plugin: how it registers, is configured and synchronized, and how it is asked."""

import logging
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from bulkhead import command
from bulkhead.config.model import Nri
from bulkhead.errors import (
    BulkheadError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
)
from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.ttrpc_frames import MESSAGE_LIMIT
from sandbox_svc.nri.connection import Answer, Connection, Lost, TimedOut
from sandbox_svc.nri.events import ALL_EVENTS, KINDS, bit

logger = logging.getLogger(__name__)

#: The release of the Go module whose protocol this is; plugins may ask.
PROTOCOL_VERSION = "v0.12.5"
#: Bytes of one Synchronize: room is left for what ttrpc puts around it.
SYNC_LIMIT = MESSAGE_LIMIT - 64 * 1024
#: Unsolicited updates of one plugin at a time.
UPDATES_AT_ONCE = 4

_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,128}")
_INDEX = re.compile(r"[0-9]{2}")

M = TypeVar("M", bound=Message)
#: Applies a plugin's updates and returns those that failed.
Update = Callable[[Sequence[nri.ContainerUpdate]], list[nri.ContainerUpdate]]


class Plugin:
    """A plugin at the other end of a socket; index and name are known before it registers if we started it.

    `on_end` is called once, from the reader's thread, when the connection has ended for whatever reason.
    """

    def __init__(
        self,
        sock: socket.socket,
        config: Nri,
        version: str,
        update: Update,
        on_end: "Callable[[Plugin], None]",
        *,
        index: str = "",
        base: str = "",
        settings: str = "",
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.index, self.base = index, base
        #: What to do where the plugin fails to answer, as it wished itself.
        self.policy = nri.FailurePolicy()
        self.events = 0
        self._config, self._version, self._update, self._on_end = config, version, update, on_end
        self._settings, self._process = settings, process
        #: Whether its process is a child of ours.
        self.started_here = process is not None
        self._registered = threading.Event()
        self._refused = ""
        self._configured = False
        self._old = False
        self._ending = threading.Lock()
        self._room = threading.BoundedSemaphore(UPDATES_AT_ONCE)
        self._connection = Connection(sock, self._serve, self._on_close, config.plugin_request_timeout)

    @property
    def name(self) -> str:
        """The plugin as conflicts and logs name it, "NN-name"."""
        return f"{self.index}-{self.base}"

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._connection.closed

    def subscribes(self, event: int) -> bool:
        """Whether the plugin wants to hear of an event."""
        return bool(self.events & bit(event))

    def begin(self) -> None:
        """Wait for the plugin to register, and configure it; a BulkheadError says why it cannot be used."""
        self._connection.start()
        timeout = self._config.plugin_registration_timeout
        if not self._registered.wait(timeout):
            raise TimedOut(f"no registration within {timeout:g} s")
        if self._refused:
            raise InvalidArgument(self._refused)
        if self._connection.closed:
            raise Lost("the connection ended before the plugin was registered")
        request = nri.ConfigureRequest(
            config=self._settings,
            runtime_name="bulkhead",
            runtime_version=self._version,
            registration_timeout=int(timeout * 1000),
            request_timeout=int(self._config.plugin_request_timeout * 1000),
            NRI_version=PROTOCOL_VERSION,
        )
        answer = self._call("Configure", request, nri.ConfigureResponse)
        if answer.events & ~ALL_EVENTS:
            raise InvalidArgument(f"events {answer.events:#x} subscribed to, of which {ALL_EVENTS:#x} exist")
        self.events, self.policy = answer.events or ALL_EVENTS, answer.failure_policy
        self._configured = True

    def synchronize(
        self, pods: Sequence[nri.PodSandbox], containers: Sequence[nri.Container]
    ) -> list[nri.ContainerUpdate]:
        """Tell the plugin of everything there is, in as many messages as it takes; return the updates it wants.

        That is the end of its registration, and as much as it will ever hear at once: the plugin has
        plugin_registration_timeout for each message, where containerd gives it the time of a request for all.
        """
        timeout = self._config.plugin_registration_timeout
        for request in _portions(pods, containers):
            answer = self._connection.call("Synchronize", request, nri.SynchronizeResponse, timeout)
            if request.more and (answer.update or not answer.more):
                raise FailedPrecondition("the plugin cannot be synchronized in several messages, and one is too short")
        return list(answer.update)

    def ask(self, event: int, request: Any) -> Any:
        """Relay an event and return the plugin's answer; None if an old plugin heard of it by StateChange."""
        kind = KINDS[event]
        if not (self._old and kind.was_state_change):
            try:
                return self._call(kind.method, request, kind.response)
            except Unimplemented:
                if not kind.was_state_change:
                    raise
                logger.warning("NRI plugin %s is older than v0.10: it is told of events by StateChange", self.name)
                self._old = True
        change = nri.StateChangeEvent(event=nri.Event.Name(event), pod=request.pod)
        if "container" in request.DESCRIPTOR.fields_by_name:
            change.container.CopyFrom(request.container)
        self._call("StateChange", change, nri.Empty)
        return None

    def shut_down(self, timeout: float) -> None:
        """Tell the plugin that the runtime goes away, and end it if it was started here."""
        try:
            self._connection.call("Shutdown", nri.Empty(), nri.Empty, timeout)
        except BulkheadError as error:
            logger.debug("NRI plugin %s, Shutdown: %s", self.name, error)
        self.close()
        self.end_process()

    def close(self) -> None:
        """End the connection; requests under way fail."""
        self._connection.close()

    def end_process(self) -> None:
        """Kill and reap the plugin's process if it was started here; waits up to 5 s for one stuck in the kernel."""
        with self._ending:
            # Once only: when it is reaped, its number may be another process's.
            process, self._process = self._process, None
        if process is not None:
            command.end(process)

    def _call(self, method: str, request: Message, response_type: type[M]) -> M:
        return self._connection.call(method, request, response_type, self._config.plugin_request_timeout)

    def _on_close(self) -> None:
        self._registered.set()
        self._on_end(self)

    def _serve(self, method: str, payload: bytes, answer: Answer) -> None:
        """Serve the plugin's calls in the reader's thread."""
        try:
            if method == "RegisterPlugin":
                self._register(nri.RegisterPluginRequest.FromString(payload), answer)
            elif method == "UpdateContainers":
                self._start_update(nri.UpdateContainersRequest.FromString(payload), answer)
            else:
                answer(Unimplemented(f"there is no method {method[:80]!r}"))
        except DecodeError as error:
            answer(InvalidArgument(f"{method}: {error}"))
        except BulkheadError as error:
            answer(error)

    def _register(self, request: nri.RegisterPluginRequest, answer: Answer) -> None:
        """Take a plugin's name and index, once; `begin` hears of a refusal as of a registration."""
        if self._registered.is_set():
            raise FailedPrecondition(f"the plugin is already registered as {self.name}")
        if not self.started_here:
            name, index = request.plugin_name, request.plugin_idx
            if not _NAME.fullmatch(name):
                self._refused = f"plugin_name is {name[:80]!r}, expected 1 to 128 of letters, digits and _.+-"
            elif not _INDEX.fullmatch(index):
                self._refused = f"plugin_idx of {name} is {index[:80]!r}, expected two digits"
            if self._refused:
                answer(InvalidArgument(self._refused))
                self._registered.set()
                return
            self.base, self.index = name, index
        logger.info(
            "NRI plugin %s registers, built for %s", self.name, request.NRI_version[:80] or "an unknown version"
        )
        answer(nri.Empty())
        self._registered.set()

    def _start_update(self, request: nri.UpdateContainersRequest, answer: Answer) -> None:
        """Apply updates in a thread of their own: the reader must go on to read."""
        if not self._configured:
            raise FailedPrecondition("the plugin is not configured yet")
        if not self._room.acquire(blocking=False):
            raise ResourceExhausted(f"{UPDATES_AT_ONCE} UpdateContainers of this plugin are under way")
        if request.evict:
            logger.warning("NRI plugin %s asks to evict containers, which is not supported: ignored", self.name)

        def work() -> None:
            try:
                answer(nri.UpdateContainersResponse(failed=self._update(request.update)))
            except BulkheadError as error:
                answer(error)
            except Exception:
                logger.exception("NRI plugin %s: updating containers failed", self.name)
                answer(Internal("updating containers failed"))
            finally:
                self._room.release()

        threading.Thread(target=work, name=f"nri update {self.name}", daemon=True).start()


def _portions(pods: Sequence[nri.PodSandbox], containers: Sequence[nri.Container]) -> Iterator[nri.SynchronizeRequest]:
    """Yield the state in messages below SYNC_LIMIT bytes, pods first, all but the last with `more` set."""
    request, size = nri.SynchronizeRequest(), 0
    for item in (*pods, *containers):
        length = item.ByteSize() + 16  # tag and length of the entry
        if size and size + length > SYNC_LIMIT:
            request.more = True
            yield request
            request, size = nri.SynchronizeRequest(), 0
        if isinstance(item, nri.Container):
            request.containers.append(item)
        elif isinstance(item, nri.PodSandbox):
            request.pods.append(item)
        size += length
    yield request
