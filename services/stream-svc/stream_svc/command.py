"""An exec or attach session: bytes between a client's channels and the descriptors that a shim handed over."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine
from typing import Any

from bulkhead.errors import BulkheadError
from stream_svc.channel import Channel
from stream_svc.command_streams import CommandStreams
from stream_svc.descriptors import Descriptor, Sink, Source
from stream_svc.outcome import Outcome, of_exec
from stream_svc.shim import Session, Size
from stream_svc.terminal import Sizes

logger = logging.getLogger(__name__)

#: Seconds to wait for the first size of a terminal: clients send it right after the streams are open, and a program
#: that is started with it need not draw twice.
_FIRST_SIZE = 0.2


class Command:
    """One session: run() once, or report() alone where it could not be run."""

    def __init__(self, shim: Session, streams: CommandStreams, version: int, drain: float) -> None:
        """Make a session of protocol `version`.

        After the process has exited its output is read to the end; where a child it left behind keeps the pipe open,
        until nothing has come for `drain` seconds (0: for ever).
        """
        self._shim, self._streams, self._version, self._drain = shim, streams, version, drain
        self._sizes = Sizes()
        self._descriptors: list[Descriptor] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> Outcome:
        """Start, copy until the process has ended and its output is with the client, report."""
        try:
            outcome = await self._process()
        except BulkheadError as error:
            verb = "attaching to" if self._shim.ticket.kind == "attach" else "executing command in"
            outcome = Outcome(error=f"error {verb} container: {error}")
        await self.report(outcome)
        return outcome

    async def report(self, outcome: Outcome) -> None:
        """Write the outcome to the error channel and end all channels."""
        if data := outcome.encode(self._version):
            await self._streams.error.write(data)
        for channel in self._streams.all():
            channel.finish()

    async def _process(self) -> Outcome:
        fds = await self._shim.begin(await self._first_size())
        try:
            outputs = self._start(fds)
            ended = await self._shim.exited
            for source, task in outputs:
                await self._drained(source, task)
            return Outcome() if self._shim.ticket.kind == "attach" else of_exec(ended)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for descriptor in self._descriptors:
                descriptor.close()

    def _start(self, fds: dict[str, int]) -> list[tuple[Source, asyncio.Task[None]]]:
        """Start the copying tasks; returns those that copy output."""
        terminal = "tty" in fds
        if terminal:
            fds = {"stdin": fds["tty"], "stdout": os.dup(fds["tty"])}
        streams = self._streams
        sink = Sink(fds["stdin"]) if "stdin" in fds else None
        sources = {name: Source(fds[name]) for name in ("stdout", "stderr") if name in fds}
        self._descriptors += [*([sink] if sink else []), *sources.values()]
        if sink is not None:
            self._run(_feed(streams.stdin, sink, keep_open=terminal))
        elif streams.stdin is not None:
            streams.stdin.discard()
        if streams.resize is not None:
            self._run(self._resizes(streams.resize))
        channels = {"stdout": streams.stdout, "stderr": streams.stderr}
        return [(source, self._run(_copy(source, channels[name]))) for name, source in sources.items()]

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def _drained(self, source: Source, task: asyncio.Task[None]) -> None:
        """Wait for the end of an output, or until it has been quiet for the drain limit."""
        while not task.done():
            seen = source.count
            await asyncio.wait({task}, timeout=self._drain or None)
            # A slow client is not a quiet process: only a reader that waits in vain is given up.
            if source.waiting and source.count == seen:
                logger.info("the output was not closed within %g s of the exit", self._drain)
                task.cancel()
                await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _first_size(self) -> Size | None:
        if self._streams.resize is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SIZE):
                sizes = list(self._sizes.feed(await self._streams.resize.read()))
                return sizes[-1] if sizes else None
        return None

    async def _resizes(self, channel: Channel) -> None:
        while data := await channel.read():
            for size in self._sizes.feed(data):
                await self._shim.resize(size)


async def _feed(channel: Channel | None, sink: Sink, *, keep_open: bool) -> None:
    """Copy input until its end, which closes the pipe; a pty stays open, it carries the output too."""
    try:
        while channel is not None and (data := await channel.read()):
            await sink.write(data)
    except OSError as error:
        # The process has closed its input or is gone; what the client still sends has no reader.
        logger.debug("input ended: %s", error)
    if not keep_open:
        sink.close()
    if channel is not None:
        channel.discard()


async def _copy(source: Source, channel: Channel | None) -> None:
    """Copy output until its end, then end the channel; without a channel it is thrown away."""
    try:
        while data := await source.read():
            if channel is not None:
                await channel.write(data)
    finally:
        if channel is not None:
            channel.finish()
