"""What streams and ExecSync need of whoever has the containers: this shim, or a foreign one beside its keeper."""

from collections.abc import Mapping
from typing import Protocol

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
