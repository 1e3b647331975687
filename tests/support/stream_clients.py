"""Blocking test clients for stream-svc: SPDY and WebSocket, as simple as they can be."""

import base64
import os
import re
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Any, Self

from stream_svc import spdy, websocket
from stream_svc.spdy_events import Data, GoAway, StreamEnded, StreamReplied, StreamReset

TIMEOUT = 30.0


class RefusedError(Exception):
    """The server answered something else than 101."""

    def __init__(self, status: int, head: str, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.head, self.body = status, head, body


def dial(port: int, tls: ssl.SSLContext | None = None) -> socket.socket:
    """Connect to the server."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
    # As Go's clients do; small frames would otherwise wait for the server's acknowledgements.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(sock, server_hostname="localhost") if tls else sock


def upgrade(sock: socket.socket, path: str, headers: dict[str, str], method: str = "GET") -> tuple[str, bytes]:
    """Send the request; returns the head of the 101 and what followed it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in headers.items())]
    if method == "POST":
        lines.append("Content-Length: 0")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    received = b""
    while b"\r\n\r\n" not in received:
        data = sock.recv(65536)
        if not data:
            break
        received += data
    raw, _, rest = received.partition(b"\r\n\r\n")
    head = raw.decode()
    match = re.match(r"HTTP/1.1 (\d+)", head)
    status = int(match[1]) if match else 0
    if status != 101:
        while data := sock.recv(65536):
            rest += data
        raise RefusedError(status, head, rest.decode())
    return head, rest


@dataclass
class Received:
    """What came on one stream or channel."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: bool = False
    replied: bool = False


class Client:
    """What both clients share: pump() until a condition holds."""

    def __init__(self, sock: socket.socket, rest: bytes) -> None:
        self.sock, self._rest = sock, rest
        self.at_end = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def pump(self, timeout: float = TIMEOUT) -> bool:
        """Receive once; False at the end of the connection."""
        data, self._rest = self._rest, b""
        if not data:
            self.sock.settimeout(timeout)
            try:
                data = self.sock.recv(65536)
            except (ConnectionError, ssl.SSLEOFError):
                data = b""
        if not data:
            self.at_end = True
            return False
        self.take(data)
        return True

    def take(self, data: bytes) -> None:
        """Parse received bytes."""
        raise NotImplementedError

    def until(self, condition: Any, timeout: float = TIMEOUT) -> None:
        """Pump until the condition holds; fails after `timeout` seconds or at the end of the connection."""
        limit = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < limit, "the condition did not come to hold"
            assert self.pump(timeout) or condition(), "the server closed the connection"

    def drain(self) -> None:
        """Pump until the server closes."""
        while self.pump():
            pass


class SpdyClient(Client):
    """One upgraded connection."""

    def __init__(
        self,
        port: int,
        path: str,
        protocols: str = "v5.channel.k8s.io, v4.channel.k8s.io, v3.channel.k8s.io",
        *,
        method: str = "POST",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        sock = dial(port, tls)
        try:
            headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocols}
            self.head, rest = upgrade(sock, path, headers, method)
        except BaseException:
            sock.close()
            raise
        self._start(sock, rest)

    def _start(self, sock: socket.socket, rest: bytes) -> None:
        Client.__init__(self, sock, rest)
        self.spdy = spdy.Connection(client=True)
        self.streams: dict[int, Received] = {}
        self.goaway = False

    def open(self, **headers: str) -> int:
        """Open a stream and wait for the answer, reply or reset."""
        stream = self.spdy.open(headers)
        received = self.streams[stream] = Received()
        self.flush()
        self.until(lambda: received.replied or received.reset)
        return stream

    def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Send bytes."""
        self.spdy.send_data(stream, data, fin=fin)
        self.flush()

    def flush(self) -> None:
        """Send what the protocol has produced."""
        self.sock.sendall(self.spdy.take())

    def take(self, data: bytes) -> None:
        """Sort events by stream."""
        for event in self.spdy.receive_data(data):
            if isinstance(event, GoAway):
                self.goaway = True
                continue
            received = self.streams[event.stream]
            if isinstance(event, Data):
                received.data += event.data
            elif isinstance(event, StreamEnded):
                received.ended = True
            elif isinstance(event, StreamReset):
                received.reset = True
            elif isinstance(event, StreamReplied):
                received.replied = True
        self.flush()

    def finished(self, stream: int) -> bytes:
        """Return all of a stream's bytes, waiting for its end."""
        received = self.streams[stream]
        self.until(lambda: received.ended or received.reset)
        return bytes(received.data)


class WebSocketClient(Client):
    """One upgraded connection with channels."""

    def __init__(self, port: int, path: str, protocol: str = "v5.channel.k8s.io") -> None:
        sock = dial(port)
        headers = {
            "Connection": "keep-alive, Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        if protocol:
            headers["Sec-WebSocket-Protocol"] = protocol
        try:
            self.head, rest = upgrade(sock, path, headers)
        except BaseException:
            sock.close()
            raise
        super().__init__(sock, rest)
        self.ws = websocket.Connection(client=True)
        self.codec = websocket.Channels(base64="base64" in protocol)
        self.channels: dict[int, Received] = {}
        self.messages = 0
        self.code = 0

    def channel(self, number: int) -> bytes:
        """Return what has come on a channel so far."""
        return bytes(self.channels.setdefault(number, Received()).data)

    def send(self, channel: int, data: bytes) -> None:
        """Send one message."""
        self.ws.send(self.codec.encode(channel, data), text=self.codec.base64)
        self.flush()

    def close_channel(self, channel: int) -> None:
        """Send v5's close signal."""
        self.ws.send(bytes([websocket.CLOSE_CHANNEL, channel]))
        self.flush()

    def flush(self) -> None:
        """Send what the protocol has produced."""
        self.sock.sendall(self.ws.take())

    def take(self, data: bytes) -> None:
        """Sort messages by channel."""
        for event in self.ws.receive_data(data):
            if isinstance(event, websocket.Closed):
                self.code = event.code
                continue
            self.messages += event.last
            for said in self.codec.decode(event):
                assert isinstance(said, websocket.ChannelData)
                self.channels.setdefault(said.channel, Received()).data += said.data
        try:
            self.flush()
        except OSError:
            self.at_end = True

    def closed(self) -> int:
        """Wait for the server's close frame and return its code."""
        self.until(lambda: self.code)
        return self.code
