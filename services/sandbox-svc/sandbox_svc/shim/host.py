"""What streams and ExecSync need of a session, and of who has the containers: this shim, or a keeper's foreign one."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from bulkhead.errors import BulkheadError
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.processes import Process
from sandbox_svc.shim.streamset import IoSpec, Streams


class Member(Protocol):
    """A container."""

    id: str
    init: Process
    execs: dict[str, Process]
    oom: bool


class Host(Protocol):
    """Has containers and runs processes in them."""

    loop: Loop

    @property
    def containers(self) -> Mapping[str, Member]:
        """The containers by id."""

    def find(self, ident: str) -> Member:
        """Return a container; NotFound if there is none of that id."""

    def streams(self, ident: str, io_spec: IoSpec) -> Streams:
        """Return streams for a process that is to run in a container."""

    async def run_exec(self, ident: str, process: Process, io: Streams, deadline: float) -> None:
        """Launch a process with streams from `streams`, which are closed if it fails."""

    def kill_group(self, process: Process) -> bool:
        """Kill a process and what it started, as far as that is in reach; whether it was alive."""


class Client(Protocol):
    """A session, as what runs in it sees it."""

    #: The terminal's last known size: width and height in characters.
    size: tuple[int, int] | None

    @property
    def loop(self) -> Loop:
        """The shim's loop."""

    @property
    def host(self) -> Host:
        """Who has the containers."""

    @property
    def closed(self) -> bool:
        """Whether the client has hung up or was hung up on."""

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call when the session ends."""

    def on_resize(self, callback: Callable[[int, int], object]) -> None:
        """Call with every size from now on, the last one known included."""

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send a message; the descriptors are closed here in any case."""

    def fail(self, error: BulkheadError) -> None:
        """Say why it ends, and end."""
