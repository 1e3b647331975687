"""Terminals: the socket on which a runtime hands over the pty that it made."""

import array
import fcntl
import os
import socket
import struct
import termios
from contextlib import suppress

from bulkhead.errors import Internal
from sandbox_svc.shim.loop import READ, Future, Loop


class ConsoleSocket:
    """Waits at a path for one runtime to send one pty master (`--console-socket`)."""

    __slots__ = ("_listener", "_loop", "_peer", "master", "path")

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop, self.path = loop, path
        self.master: Future[int] = Future()
        self._peer: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(1)
        loop.watch(self._listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Stop waiting; a master that was received is the receiver's."""
        if self._listener.fileno() >= 0:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            with suppress(OSError):
                os.unlink(self.path)
        self._hang_up()
        self.master.fail(Internal("the runtime sent no terminal"))

    def _accept(self, _: int) -> None:
        with suppress(BlockingIOError):
            peer, _address = self._listener.accept()
            self._hang_up()
            peer.setblocking(False)
            self._peer = peer
            self._loop.watch(peer.fileno(), READ, self._receive)

    def _receive(self, _: int) -> None:
        assert self._peer is not None
        _data, ancillary, _flags, _address = self._peer.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for level, sort, payload in ancillary:
            if (level, sort) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i", payload[:4])
                if self.master.done:
                    os.close(fds[0])
                else:
                    self.master.set(fds[0])
        self._hang_up()

    def _hang_up(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            self._loop.unwatch(peer.fileno())
            peer.close()


def resize(master: int, width: int, height: int) -> None:
    """Set a terminal's size in characters; sizes beyond what the kernel stores are cut."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", min(height, 65535), min(width, 65535), 0, 0))
