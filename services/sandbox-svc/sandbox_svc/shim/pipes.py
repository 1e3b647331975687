"""Moving bytes: sources that are read when they have something, sinks that are never waited for.

A sink's `write` returns nothing when it took the bytes, or a future after which it takes more; a source that is given
one stops reading until then. Only a named pipe's reader or a process's standard input holds a source up like that:
log files and attach clients never do.
"""

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from sandbox_svc.shim.loop import READ, WRITE, Future, Loop

READ_SIZE = 64 * 1024
#: How much an attach client may be behind, beside what its pipe holds, before it is cut.
TAP_LIMIT = 1 << 20
#: Seconds that the last bytes may wait for a reader after the stream has ended.
LINGER = 10.0
#: Seconds to wait for descriptors to become free.
SHORTAGE = 0.2


class Sink(Protocol):
    """Where a source's bytes go."""

    def write(self, data: bytes) -> Future[None] | None:
        """Take the bytes; BrokenPipeError if nobody will ever read them."""

    def finish(self) -> None:
        """Nothing more will come."""


class Source:
    """A descriptor that is read to its end, each read handed to every sink.

    One read a turn of the loop, so that a container that floods its log delays nobody's call for long. With
    `feeds_one` the source ends with its last sink; otherwise it is read and dropped, so that a writer never blocks.
    """

    __slots__ = ("_feeds_one", "_held", "_loop", "ended", "fd", "sinks")

    def __init__(self, loop: Loop, fd: int, sinks: list[Sink], *, feeds_one: bool = False) -> None:
        os.set_blocking(fd, False)
        self._loop, self.fd, self.sinks, self._feeds_one = loop, fd, sinks, feeds_one
        self._held = False
        self.ended: Future[None] = Future()
        loop.watch(fd, READ, self._ready)

    def drain(self, reads: int = 64) -> None:
        """Read what is there now, at most so many times; returns early where a sink is full."""
        while reads > 0 and not self._held and not self.ended.done and self._read():
            reads -= 1

    def close(self) -> None:
        """Stop reading, finish the sinks and close the descriptor; a second close does nothing."""
        if self.ended.done:
            return
        if not self._held:
            self._loop.unwatch(self.fd)
        os.close(self.fd)
        sinks, self.sinks = self.sinks, []
        for sink in sinks:
            sink.finish()
        self.ended.set(None)

    def _ready(self, _: int) -> None:
        self._read()

    def _read(self) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # a pty master whose last user is gone answers EIO
        if not data:
            self.close()
            return False
        for sink in list(self.sinks):
            self._give(sink, data)
        if self._feeds_one and not self.sinks:
            self.close()
            return False
        return True

    def _give(self, sink: Sink, data: bytes) -> None:
        try:
            gate = sink.write(data)
        except BrokenPipeError:
            self.sinks.remove(sink)
            return
        if gate is not None and not self._held:
            self._held = True
            self._loop.unwatch(self.fd)
            gate.then(lambda _: self._loop.soon(self._resume))

    def _resume(self) -> None:
        if not self.ended.done:
            self._held = False
            self._loop.watch(self.fd, READ, self._ready)


class Outlet:
    """A descriptor that is written without blocking; what it does not take waits here."""

    __slots__ = ("_closing", "_drained", "_loop", "_pending", "closed", "fd", "waiting")

    def __init__(self, loop: Loop, fd: int) -> None:
        os.set_blocking(fd, False)
        self._loop, self.fd = loop, fd
        self._pending: deque[memoryview] = deque()
        self._drained: Future[None] | None = None
        self._closing = False
        self.waiting = 0
        self.closed: Future[None] = Future()

    def write(self, data: bytes) -> Future[None] | None:
        """Write, or keep what does not fit and return the future of its departure."""
        if self.closed.done or self._closing:
            raise BrokenPipeError
        self._pending.append(memoryview(data))
        self.waiting += len(data)
        if len(self._pending) == 1:
            self._flush()
        if self.closed.done:
            raise BrokenPipeError
        if not self._pending:
            return None
        if self._drained is None:
            self._drained = Future()
        return self._drained

    def finish(self) -> None:
        """Close as soon as everything has been written, LINGER seconds from now at the latest."""
        self._closing = True
        if self._pending:
            self._loop.later(LINGER, self.close)
        else:
            self.close()

    def close(self) -> None:
        """Close now and drop what waits; a second close does nothing."""
        if self.closed.done:
            return
        self._loop.unwatch(self.fd)
        os.close(self.fd)
        self._pending.clear()
        self.waiting = 0
        self.closed.set(None)
        self._release()

    def _flush(self, _: int = 0) -> None:
        while self._pending:
            data = self._pending[0]
            try:
                sent = os.write(self.fd, data)
            except BlockingIOError:
                self._loop.watch(self.fd, WRITE, self._flush)
                return
            except OSError:
                self.close()
                return
            self.waiting -= sent
            if sent < len(data):
                self._pending[0] = data[sent:]
            else:
                self._pending.popleft()
        self._loop.unwatch(self.fd)
        self._release()
        if self._closing:
            self.close()

    def _release(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set(None)


class Tap:
    """A client that watches a stream: it never holds the stream up, and is cut when it falls too far behind."""

    __slots__ = ("_on_cut", "_outlet")

    def __init__(self, loop: Loop, fd: int, on_cut: Callable[[], object]) -> None:
        self._outlet = Outlet(loop, fd)
        self._on_cut = on_cut

    @property
    def closed(self) -> Future[None]:
        """Settled when everything was written, or the client is gone or cut."""
        return self._outlet.closed

    def write(self, data: bytes) -> None:
        """Pass on; a client that is TAP_LIMIT bytes behind is cut."""
        self._outlet.write(data)
        if self._outlet.waiting > TAP_LIMIT:
            self._outlet.close()
            self._on_cut()
            raise BrokenPipeError

    def finish(self) -> None:
        """Close after the rest has been written."""
        self._outlet.finish()

    def close(self) -> None:
        """Close now."""
        self._outlet.close()


class SharedInput:
    """A process's standard input as one of several clients feeds it; with `once` it ends with this one."""

    __slots__ = ("_once", "_outlet")

    def __init__(self, outlet: Outlet, *, once: bool) -> None:
        self._outlet, self._once = outlet, once

    def write(self, data: bytes) -> Future[None] | None:
        """Pass on."""
        return self._outlet.write(data)

    def finish(self) -> None:
        """End the container's input if this client was to be the only one."""
        if self._once:
            self._outlet.finish()


class Door:
    """A listening socket: each connection is handed over, without blocking and set so itself."""

    __slots__ = ("_loop", "_on_connection", "_socket")

    def __init__(self, loop: Loop, sock: socket.socket, on_connection: Callable[[socket.socket], object]) -> None:
        self._loop, self._socket, self._on_connection = loop, sock, on_connection
        sock.setblocking(False)
        self._open()

    def _open(self) -> None:
        self._loop.watch(self._socket.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            connection, _address = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # Out of descriptors: the connection waits in the backlog, and must not wake us all the time.
            self._loop.unwatch(self._socket.fileno())
            self._loop.later(SHORTAGE, self._open)
            return
        connection.setblocking(False)
        self._on_connection(connection)


def pipe(uid: int = 0, gid: int = 0) -> tuple[int, int]:
    """Return the ends of a new pipe, read end first, owned so that its user may open /dev/stdout anew."""
    ends = os.pipe2(os.O_CLOEXEC)
    if uid or gid:
        os.fchown(ends[0], uid, gid)  # both ends are one inode
    return ends


def receive(sock: socket.socket) -> bytes | None:
    """Return what a socket has, at most 64 KiB: nothing at its end or once it is broken, None if it has none yet."""
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return None
    except OSError:
        return b""
