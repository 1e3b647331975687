"""One shim: its loop, its sockets, its containers, from the first turn to the last."""

import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass, field

from bulkhead import log
from sandbox_svc import linux
from sandbox_svc.shim.events import Publisher
from sandbox_svc.shim.keeper import Keeper
from sandbox_svc.shim.lifecycle import Lifecycle
from sandbox_svc.shim.loop import Loop, Timer
from sandbox_svc.shim.reaper import IGNORED, Reaper
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
#: A shim's log starts anew beyond this many bytes: it stands on a tmpfs.
DIARY_LIMIT = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What a shim is born with."""

    namespace: str
    #: Listens for ttrpc.
    task: socket.socket
    #: Listens for stream sessions; none under a stock containerd.
    stream: socket.socket | None
    #: Console sockets are named by this and a number.
    console_base: str
    #: A file, or containerd's named pipe, for the shim's own log.
    diary: str = ""
    #: TTRPC_ADDRESS; empty for no events.
    events: str = ""
    level: str = "info"
    #: For a keeper: the foreign shim's address, its task service's version ("v2" or "v3"), and where the bundles are.
    foreign: str = ""
    foreign_version: str = "v3"
    directory: str = ""
    bundles: str = ""
    #: Removed at the end: sockets first, then their directory.
    leave_behind: tuple[str, ...] = field(default=())


class Diary:
    """A text stream that never blocks and never fails: lines that cannot be written are lost."""

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600) if path else -1
        except OSError:
            self._fd = -1

    def write(self, text: str) -> int:
        """Append."""
        with suppress(OSError):
            if self._fd >= 0:
                if os.fstat(self._fd).st_size > DIARY_LIMIT:
                    os.ftruncate(self._fd, 0)
                os.write(self._fd, text.encode(errors="replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


class Shim:
    """The parts of one shim process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loop = Loop()
        self.reaper = Reaper(self.loop)
        self.publisher = Publisher(self.loop, settings.events, settings.namespace)
        self.tickets = Tickets(self.loop)
        self.host, methods = self._keeper() if settings.foreign else self._own()
        methods |= ShimService(self.host, self.tickets).methods()
        self.server = Server(self.loop, settings.task, methods)
        self.streams: StreamServer | None = None
        if settings.stream is not None:
            self.streams = StreamServer(self.loop, settings.stream, self.host, self.tickets)
        self._idle: Timer = self.loop.later(FIRST_WAIT, self._leave_if_empty)
        self.host.on_empty = self._empty

    def _own(self) -> tuple[Lifecycle | Keeper, dict[str, Method]]:
        settings = self.settings
        lifecycle = Lifecycle(self.loop, self.reaper, settings.namespace, settings.console_base, self.publisher.publish)
        return lifecycle, TaskService(lifecycle, self.shutdown).methods()

    def _keeper(self) -> tuple[Lifecycle | Keeper, dict[str, Method]]:
        settings = self.settings
        upstream = Upstream(self.loop, settings.foreign, settings.foreign_version, settings.namespace)
        keeper = Keeper(self.loop, upstream, settings.directory, self.shutdown)
        keeper.adopt(settings.bundles)
        return keeper, keeper.methods()

    def run(self) -> None:
        """Serve until the last container is gone."""
        logger.info("shim serves", extra={"pid": os.getpid(), "namespace": self.settings.namespace})
        self.loop.run()
        for path in self.settings.leave_behind:
            with suppress(OSError):
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)

    def close(self) -> None:
        """Close what this shim opened; its process goes on (the zygote's rehearsal)."""
        self.reaper.close()
        self.host.close()
        self.loop.close()

    def shutdown(self) -> None:
        """Leave as soon as the last answers and events have left."""
        self.loop.detach(self._farewell())

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


def become(settings: Settings) -> None:
    """Turn this process, which has one thread and no file of its own but the sockets, into a shim."""
    os.chdir("/")
    os.umask(0o022)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    log.setup("shim", settings.level, "text", Diary(settings.diary))  # type: ignore[arg-type]  # write and flush do
    with suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write("bulkhead-shim")
    try:
        Shim(settings).run()
    except BaseException:
        logger.exception("the shim failed")
        raise
