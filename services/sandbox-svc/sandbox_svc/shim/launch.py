"""Getting a process from a runtime: pid file, streams and terminal, and its exit, however early."""

import itertools
import os
import signal
from collections.abc import Awaitable, Callable, Sequence

from bulkhead.errors import BulkheadError, Internal
from sandbox_svc.shim import notes
from sandbox_svc.shim.console import ConsoleSocket
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.processes import Process
from sandbox_svc.shim.reaper import Exit, Reaper
from sandbox_svc.shim.stdio import ProcessIO

#: Seconds that a terminal may take to arrive after the runtime has returned.
TERMINAL_WAIT = 10.0

#: Runs the runtime with a pid file, stdio and a console socket (empty for none).
Step = Callable[[str, Sequence[int], str], Awaitable[None]]

_numbers = itertools.count()


class Launcher:
    """Launches processes through a runtime."""

    def __init__(self, loop: Loop, reaper: Reaper) -> None:
        self._loop, self._reaper = loop, reaper
        #: Console sockets are named by this and a number.
        self.console_base = ""

    async def launch(
        self, process: Process, io: ProcessIO, directory: str, step: Step, ended: Callable[[Exit], None]
    ) -> None:
        """Run one step of a runtime that makes a process, which gets `io`; `ended` hears of its exit, once.

        The streams are closed if anything fails; a process that was made all the same is killed.
        """
        pid_file = f"{directory}/process-{next(_numbers)}.pid"
        console = None
        self._reaper.expect()
        try:
            if process.io_spec.terminal:
                console = ConsoleSocket(self._loop, f"{self.console_base}{next(_numbers)}", process.size)
            await step(pid_file, io.child(), console.path if console else "")
            process.pid = int(notes.read(pid_file))
            process.io = io
            self._reaper.claim(process.pid).then(lambda future: ended(future.result()))
            if console is not None:
                await self._adopt(console, process, io)
            io.feed()
        except BaseException as error:
            io.close()
            if isinstance(error, OSError | ValueError):
                raise Internal(f"{process} cannot be launched: {error}") from error
            raise
        finally:
            self._reaper.settle()
            io.started()
            if console is not None:
                console.close()
            notes.remove(pid_file)

    async def _adopt(self, console: ConsoleSocket, process: Process, io: ProcessIO) -> None:
        try:
            io.adopt(await self._loop.within(console.master, TERMINAL_WAIT, "the arrival of the terminal"))
        except BulkheadError:
            if self._reaper.alive(process.pid):
                os.kill(process.pid, signal.SIGKILL)
            raise
        if process.size is not None:
            io.resize(*process.size)
