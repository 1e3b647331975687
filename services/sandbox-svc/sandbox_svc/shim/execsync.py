"""ExecSync: run a process to its end and hand back what it said, in one round trip."""

import itertools
import os
import time

from bulkhead.errors import BulkheadError, DeadlineExceeded
from bulkhead.proto.shim_pb2 import ExecSyncRequest, ExecSyncResponse
from sandbox_svc.shim.host import Host
from sandbox_svc.shim.loop import Future
from sandbox_svc.shim.processes import Process
from sandbox_svc.shim.reaper import Exit
from sandbox_svc.shim.server import Answer
from sandbox_svc.shim.streamset import IoSpec, Streams

#: Output up to this size travels inside the answer.
INLINE_LIMIT = 64 * 1024
#: Both streams together, where the caller sets no limit: the kubelet takes messages of 16 MiB.
OUTPUT_LIMIT = 15 << 20
#: Seconds that a killed process may take to be reaped before the answer leaves without it.
KILL_WAIT = 10.0

_numbers = itertools.count()


class Budget:
    """How many bytes both streams may still bring."""

    __slots__ = ("exceeded", "left")

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.exceeded = False

    def take(self, data: bytes) -> bytes:
        """Return as much of the data as is allowed."""
        if len(data) > self.left:
            data, self.exceeded = data[: self.left], True
        self.left -= len(data)
        return data


class Capture:
    """Keeps one stream: the beginning in memory, and all of it in a memory file once it grows.

    A memory file is given back to the kernel afterwards; a heap that was 16 MiB once tends to stay so.
    """

    __slots__ = ("_budget", "data", "fd", "length")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.data = bytearray()
        self.fd = -1
        self.length = 0

    def write(self, data: bytes) -> None:
        """Keep what the budget allows, drop the rest: the process must not block."""
        data = self._budget.take(data)
        self.length += len(data)
        if self.fd < 0 and self.length <= INLINE_LIMIT:
            self.data += data
            return
        if self.fd < 0:
            self.fd = os.memfd_create("exec-output", os.MFD_CLOEXEC)
            _write(self.fd, bytes(self.data))
            self.data.clear()
        _write(self.fd, data)

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Free the memory file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ExecSync:
    """One call under way."""

    def __init__(self, host: Host, request: ExecSyncRequest) -> None:
        self._host, self._loop, self._request = host, host.loop, request
        self._budget = Budget(request.output_limit or OUTPUT_LIMIT)
        self._stdout, self._stderr = Capture(self._budget), Capture(self._budget)
        self._ends = time.monotonic() + request.timeout_ms / 1000 if request.timeout_ms > 0 else 0.0

    async def run(self) -> Answer:
        """Run the process and return the answer with its output."""
        container = self._host.find(self._request.container_id)
        process = Process(container.id, f"sync-{next(_numbers)}", IoSpec(), self._request.process)
        process.busy = busy = Future[None]()
        io = self._host.streams(container.id, process.io_spec)
        try:
            io.capture("stdout", self._stdout)
            io.capture("stderr", self._stderr)
            try:
                await self._host.run_exec(container.id, process, io, self._left())
                busy.set(None)
                end = await self._wait(process)
            except DeadlineExceeded:
                return self._answer(None)
            await self._drain(io)
            return self._answer(end)
        finally:
            io.close()
            self._stdout.close()
            self._stderr.close()

    def _left(self) -> float:
        """Seconds until the deadline, 0 without one."""
        return max(0.001, self._ends - time.monotonic()) if self._ends else 0.0

    async def _wait(self, process: Process) -> Exit:
        if not self._ends:
            return await process.exited
        try:
            return await self._loop.within(process.exited, self._left(), "the process")
        except DeadlineExceeded:
            if self._host.kill_group(process):
                await self._loop.within(process.exited, KILL_WAIT, "the killed process")
            raise

    async def _drain(self, io: Streams) -> None:
        """Read on until the streams end or the limit is reached: a child left behind may hold them open for ever."""
        limit = self._request.drain_ms / 1000 or 365 * 86400.0
        until = time.monotonic() + limit
        for ended in io.output_ended():
            try:
                await self._loop.within(ended, max(0.0, until - time.monotonic()), "the output")
            except BulkheadError:
                return

    def _answer(self, end: Exit | None) -> Answer:
        """Put the answer together; without an exit the deadline has passed."""
        out, err = self._stdout, self._stderr
        answer = ExecSyncResponse(
            exit_code=end.status if end else -1,
            timed_out=end is None,
            stdout_length=out.length,
            stderr_length=err.length,
            truncated=self._budget.exceeded,
        )
        if out.length + err.length <= INLINE_LIMIT:
            answer.stdout, answer.stderr = bytes(out.data), bytes(err.data)
            return Answer(answer.SerializeToString())
        return Answer(answer.SerializeToString(), self._join())

    def _join(self) -> int:
        """Return one memory file with standard output followed by standard error."""
        out, err = self._stdout, self._stderr
        fd = os.memfd_create("exec-output", os.MFD_CLOEXEC) if out.fd < 0 else os.dup(out.fd)
        if out.fd < 0:
            _write(fd, bytes(out.data))
        if err.fd < 0:
            _write(fd, bytes(err.data))
        else:
            at = 0
            while at < err.length:
                at += os.sendfile(fd, err.fd, at, err.length - at)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
