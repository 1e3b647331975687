"""Attaching to a container's streams: any number of clients, of which none can hold the container up."""

from bulkhead.errors import BulkheadError, FailedPrecondition, ResourceExhausted
from bulkhead.proto.shim_pb2 import AttachTicket
from sandbox_svc.shim.host import Client
from sandbox_svc.shim.pipes import Outlet, SharedInput, Sink, Source, Tap, pipe
from sandbox_svc.shim.streamset import Streams

#: Seconds after the exit that streams held open by a left-over process are still shown, and clients may lag.
AFTERGLOW = 2.0


async def attach(session: Client, ticket: AttachTicket) -> None:
    """Give the client pipes to the container's streams and tell it the container's exit."""
    process = session.host.find(ticket.container_id).init
    if process.end is not None or process.io is None:
        raise FailedPrecondition(f"cannot attach to {process}: it is not running")
    io = process.io
    names: list[str] = []
    fds: list[int] = []
    if ticket.stdin and io.stdin is not None and not io.stdin.closed.done:
        names.append("stdin")
        fds.append(_input(session, io, io.stdin, terminal=process.io_spec.terminal))
    taps = []
    for stream, wanted in (("stdout", ticket.stdout), ("stderr", ticket.stderr and not ticket.tty)):
        if wanted:
            tap, fd = _output(session, io, stream)
            taps.append(tap)
            names.append(stream)
            fds.append(fd)
    if ticket.tty:
        session.on_resize(io.resize)
    session.send({"started": {"fds": names}}, tuple(fds))
    end = await process.exited
    await _show_out(session, taps)
    session.send({"exit": {"code": end.status, "message": ""}})


def _input(session: Client, io: Streams, outlet: Outlet, *, terminal: bool) -> int:
    reader, writer = pipe()
    sink: Sink = SharedInput(outlet, once=io.stdin_once and not terminal)
    source = Source(session.loop, reader, [sink], feeds_one=True)
    session.on_close(source.close)
    return writer


def _output(session: Client, io: Streams, stream: str) -> tuple[Tap, int]:
    reader, writer = pipe()
    cut = ResourceExhausted("the client reads too slowly and was cut off")
    tap = Tap(session.loop, writer, lambda: session.fail(cut))
    session.on_close(tap.close)
    io.tap(stream, tap)
    return tap, reader


async def _show_out(session: Client, taps: list[Tap]) -> None:
    for tap in taps:
        try:
            await session.loop.within(tap.closed, AFTERGLOW, "the last output")
        except BulkheadError:
            tap.finish()
