"""Pipes, ptys and sockets that a shim handed over, read and written without blocking the loop.

The descriptors are made non-blocking here. A shim keeps no end that it reads or writes itself, except the pty's master,
where it only sets sizes; so the flag, which belongs to the open file and not to the descriptor, disturbs nobody.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable

READ_SIZE = 64 * 1024


class Descriptor:
    """One end of something, closed once."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        #: Bytes that went through.
        self.count = 0
        #: Whether a task waits for the other end.
        self.waiting = False

    def close(self) -> None:
        """Close; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        fd, future = self._fd, asyncio.get_running_loop().create_future()
        add(fd, _wake, future)
        self.waiting = True
        try:
            await future
        finally:
            self.waiting = False
            remove(fd)


class Source(Descriptor):
    """An end that is read."""

    async def read(self) -> bytes:
        """Return what is there, waiting for it; b"" at the end. A pty whose other side is closed has ended."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = os.read(self._fd, READ_SIZE)
            except BlockingIOError:
                await self._ready(loop.add_reader, loop.remove_reader)
            except OSError as error:
                if error.errno in (errno.EIO, errno.ECONNRESET):
                    return b""
                raise
            else:
                self.count += len(data)
                return data


class Sink(Descriptor):
    """An end that is written."""

    async def write(self, data: bytes) -> None:
        """Write everything, waiting as long as the other end takes; BrokenPipeError when nobody reads any more."""
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        while view:
            try:
                written = os.write(self._fd, view)
            except BlockingIOError:
                await self._ready(loop.add_writer, loop.remove_writer)
            else:
                self.count += written
                view = view[written:]

    def shut(self) -> None:
        """Tell a socket's other end that nothing more comes."""
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            sock.shutdown(socket.SHUT_WR)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
