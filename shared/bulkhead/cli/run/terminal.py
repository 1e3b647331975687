"""Standard input and the terminal of a run, by way of the stream server (v5.channel.k8s.io over a WebSocket)."""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import ssl
import struct
import sys
import termios
import threading
import tty as ttys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    RejectConnection,
    Request,
)

from bulkhead.cli.run.runtime import Runtime
from bulkhead.errors import BulkheadError, Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri

#: Channels of the protocol; 255 closes the one that follows it.
_STDIN, _STDOUT, _STDERR, _RESIZE, _CLOSE = 0, 1, 2, 4, 255
_PROTOCOL = "v5.channel.k8s.io"
_PIECE = 32 * 1024
_TIMEOUT = 10.0


def attach(runtime: Runtime, container: str) -> bool:
    """Give this terminal to a container until its streams end; False, with nothing done, for one that has ended."""
    try:
        connection = Connection(runtime.attach_url(container, tty=True, output=True))
    except BulkheadError:
        if runtime.status(container).state == cri.CONTAINER_EXITED:
            return False
        raise
    with contextlib.closing(connection), _raw(), _resizing(connection):
        connection.converse(sys.stdin.fileno())
    return True


@contextmanager
def fed(runtime: Runtime, container: str) -> Iterator[None]:
    """Pass standard input on in the background, while the block shows the container's log."""
    connection = Connection(runtime.attach_url(container, tty=False, output=False))
    thread = threading.Thread(target=connection.converse, args=(sys.stdin.fileno(),), name="stdin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        connection.close()


class Connection:
    """One attached session."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._ws = WSConnection(ConnectionType.CLIENT)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._lock = threading.Lock()
        self._over = False
        try:
            self._sock = socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=_TIMEOUT)
            if parts.scheme == "https":
                # The certificate is the server's own, and the address came over the CRI socket.
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                self._sock = context.wrap_socket(self._sock)
            self._sock.sendall(self._ws.send(Request(host=parts.netloc, target=parts.path, subprotocols=[_PROTOCOL])))
            while not self._accepted():
                self._take()
        except OSError as error:
            raise Unavailable(f"stream server {parts.netloc}: {error}") from error
        self._sock.settimeout(None)

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes on a channel."""
        with self._lock:
            self._sock.sendall(self._ws.send(Message(data=bytes([channel]) + data)))

    def converse(self, source: int) -> None:
        """Pass `source` on, and write what comes to our own streams, until the container's streams end."""
        watched = [self._sock.fileno(), source]
        try:
            while not self._over:
                pending = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()
                ready = [watched[0]] if pending else select.select(watched, [], [])[0]
                if source in ready:
                    data = os.read(source, _PIECE)
                    if data:
                        self.send(_STDIN, data)
                    else:
                        self.send(_CLOSE, bytes([_STDIN]))
                        watched.remove(source)
                if watched[0] in ready:
                    self._take()
                    self._show()
        except OSError:
            self._over = True

    def close(self) -> None:
        """Hang up."""
        self._over = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _take(self) -> None:
        data = self._sock.recv(_PIECE)
        self._ws.receive_data(data or None)
        self._over = self._over or not data

    def _accepted(self) -> bool:
        for event in self._ws.events():
            if isinstance(event, RejectConnection):
                raise Unavailable(f"the stream server refused to attach (status {event.status_code})")
            if isinstance(event, AcceptConnection):
                return True
        if self._over:
            raise Unavailable("the stream server hung up")
        return False

    def _show(self) -> None:
        for event in self._ws.events():
            if isinstance(event, Ping):
                with self._lock:
                    self._sock.sendall(self._ws.send(event.response()))
            elif isinstance(event, CloseConnection):
                self._over = True
            elif isinstance(event, BytesMessage) and event.data:
                channel, data = event.data[0], bytes(event.data[1:])
                if channel in (_STDOUT, _STDERR):
                    target = sys.stdout.buffer if channel == _STDOUT else sys.stderr.buffer
                    target.write(data)
                    target.flush()


@contextmanager
def _raw() -> Iterator[None]:
    """Hand the keyboard over as it is: the container's terminal does what ours did."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    ttys.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def _resizing(connection: Connection) -> Iterator[None]:
    """Tell the container's terminal the size of ours, now and whenever it changes."""

    def tell() -> None:
        size = fcntl.ioctl(sys.stdin.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        rows, columns, _, _ = struct.unpack("HHHH", size)
        with contextlib.suppress(OSError):
            connection.send(_RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    def changed(_number: int, _frame: FrameType | None) -> None:
        # The signal may have come in the middle of sending.
        threading.Thread(target=tell, daemon=True).start()

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        tell()
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
