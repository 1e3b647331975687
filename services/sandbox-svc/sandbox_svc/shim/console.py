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

#: ioctl_tty(2), since Linux 4.13.
_TIOCGPTPEER = 0x5441


class ConsoleSocket:
    """Waits at a path for one runtime to send one pty master (`--console-socket`)."""

    __slots__ = ("_listener", "_loop", "_peer", "_size", "master", "path")

    def __init__(self, loop: Loop, path: str, size: tuple[int, int] | None = None) -> None:
        self._loop, self.path = loop, path
        #: Set as soon as the terminal is here: crun's exec does not heed consoleSize, and runs the process soon after.
        self._size = size
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
                    if self._size is not None:
                        resize(fds[0], *self._size)
                    self.master.set(fds[0])
        self._hang_up()

    def _hang_up(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            self._loop.unwatch(peer.fileno())
            peer.close()


def open_other_end(master: int) -> int:
    """Open a terminal's user side without its path, which stands in the container; it becomes nobody's terminal."""
    return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def resize(master: int, width: int, height: int) -> None:
    """Set a terminal's size in characters; sizes beyond what the kernel stores are cut."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", min(height, 65535), min(width, 65535), 0, 0))
