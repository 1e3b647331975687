"""One shim: its loop, its sockets, its containers, from the first turn to the last."""

import logging
import os
import socket
from contextlib import suppress
from typing import NamedTuple

from sandbox_svc import linux
from sandbox_svc.shim.events import Publisher
from sandbox_svc.shim.keeper import Keeper
from sandbox_svc.shim.lifecycle import Lifecycle
from sandbox_svc.shim.loop import Loop, Timer
from sandbox_svc.shim.reaper import Reaper
from sandbox_svc.shim.server import Method, Server
from sandbox_svc.shim.service import ShimService
from sandbox_svc.shim.streams import StreamServer
from sandbox_svc.shim.task import TaskService
from sandbox_svc.shim.tickets import Tickets
from sandbox_svc.shim.upstream import Upstream

logger = logging.getLogger(__name__)

#: Seconds without a container, at the beginning and later, after which a shim leaves by itself.
FIRST_WAIT, IDLE_WAIT = 120.0, 20.0
#: Seconds that the last answers and events may take to leave.
FAREWELL = 2.0


class Settings(NamedTuple):
    """What a shim is born with."""

    namespace: str
    #: Listens for ttrpc.
    task: socket.socket
    #: Listens for stream sessions; none under a stock containerd.
    stream: socket.socket | None
    #: Console sockets are named by this and a number.
    console_base: str
    #: TTRPC_ADDRESS; empty for no events.
    events: str = ""
    #: For a keeper: the foreign shim's address, its task service's version ("v2" or "v3"), and where the bundles are.
    foreign: str = ""
    foreign_version: str = "v3"
    directory: str = ""
    bundles: str = ""
    #: Removed at the end: sockets first, then their directory.
    leave_behind: tuple[str, ...] = ()


class Shim:
    """The parts of one shim: made before the process is forked, begun after."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.reaper = Reaper(self.loop)
        self.publisher = Publisher(self.loop)
        self.lifecycle = Lifecycle(self.loop, self.reaper, self.publisher.publish)
        self.lifecycle.on_empty = self._empty
        #: Who has the containers: we, or for a keeper the foreign shim.
        self.host: Lifecycle | Keeper = self.lifecycle
        self.tickets = Tickets(self.loop)
        methods = TaskService(self.lifecycle, self.shutdown).methods()
        self.server = Server(self.loop, self._with_service(methods))
        self.streams = StreamServer(self.loop, self.host, self.tickets)
        self._leave_behind: tuple[str, ...] = ()
        self._idle = Timer(self._leave_if_empty)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What is open before the beginning."""
        return (self.reaper.fd, self.lifecycle.null)

    def begin(self, settings: Settings) -> None:
        """Start to listen in the process that is to be the shim."""
        self.loop.open()
        self.reaper.begin()
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        self.publisher.begin(settings.events, settings.namespace)
        if settings.foreign:
            self._become_keeper(settings)
        else:
            self.lifecycle.begin(settings.namespace, settings.console_base)
        self._leave_behind = settings.leave_behind
        self.server.listen(settings.task)
        if settings.stream is not None:
            self.streams.listen(settings.stream)
        self._idle = self.loop.later(FIRST_WAIT, self._leave_if_empty)

    def run(self) -> None:
        """Serve until the last container is gone."""
        try:
            self.loop.run()
        except BaseException:
            logger.exception("the shim failed")
            raise
        for path in self._leave_behind:
            with suppress(OSError):
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)

    def close(self) -> None:
        """Close what this shim opened; its process goes on (the rehearsal)."""
        self.reaper.close()
        self.lifecycle.close()
        self.loop.close()

    def shutdown(self) -> None:
        """Leave as soon as the last answers and events have left."""
        self.loop.detach(self._farewell())

    def _with_service(self, methods: dict[str, Method]) -> dict[str, Method]:
        return methods | ShimService(self.host, self.tickets).methods()

    def _become_keeper(self, settings: Settings) -> None:
        upstream = Upstream(self.loop, settings.foreign, settings.foreign_version, settings.namespace)
        self.host = keeper = Keeper(self.loop, upstream, settings.directory, self.shutdown)
        keeper.on_empty = self._empty
        keeper.adopt(settings.bundles)
        self.streams.host = keeper
        self.server.methods = self._with_service(keeper.methods())

    async def _farewell(self) -> None:
        for _ in range(int(FAREWELL / 0.01)):
            await self.loop.sleep(0.01)
            if self.server.flushed() and self.publisher.idle:
                break
        if not self.host.containers:
            self.loop.stop()

    def _empty(self) -> None:
        self._idle.cancel()
        self._idle = self.loop.later(IDLE_WAIT, self._leave_if_empty)

    def _leave_if_empty(self) -> None:
        if not self.host.containers:
            self.shutdown()
