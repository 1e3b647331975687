"""What an exec session does once it begins."""

import itertools
import os

from bulkhead.proto.shim_pb2 import ExecTicket
from sandbox_svc.shim.host import Client
from sandbox_svc.shim.loop import Future
from sandbox_svc.shim.processes import Process
from sandbox_svc.shim.streamset import IoSpec

_numbers = itertools.count()


async def exec_process(session: Client, ticket: ExecTicket) -> None:
    """Run the ticket's process with pipes, or a terminal, whose other ends go to the client; then tell its exit."""
    host = session.host
    container = host.find(ticket.container_id)
    process = Process(container.id, f"stream-{next(_numbers)}", IoSpec(terminal=ticket.tty), ticket.process)
    process.busy = busy = Future[None]()
    process.size = session.size
    io = host.streams(container.id, process.io_spec)
    io.raw_terminal = True
    wanted = {"stdin": ticket.stdin, "stdout": ticket.stdout, "stderr": ticket.stderr}
    names = [] if ticket.tty else [name for name, yes in wanted.items() if yes]
    fds = [io.expose(name) for name in names]
    try:
        await host.run_exec(container.id, process, io, 0)
        session.on_close(lambda: host.kill_group(process))
        if session.closed:  # it went away while the runtime was at work
            host.kill_group(process)
        if ticket.tty:
            names, fds = ["tty"], [io.take_terminal()]
            session.on_resize(io.resize)
        given, fds = tuple(fds), []
        session.send({"started": {"fds": names}}, given)
        busy.set(None)
        end = await process.exited
        session.send({"exit": {"code": end.status, "message": ""}})
    finally:
        io.close()
        for fd in fds:
            os.close(fd)
