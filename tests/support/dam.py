"""A TCP proxy that lets so many bytes of what the server sends pass, and the rest once it is opened."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from support.tcp_proxy import tcp_proxy


@dataclass
class Dam:
    """Where the proxy listens, and what holds it."""

    address: str = ""
    #: Bytes that each connection may receive before the dam is opened.
    limit: int = 0
    #: Set once some connection has received that many.
    full: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)


@contextmanager
def dam(target: str, limit: int) -> Iterator[Dam]:
    """Run such a proxy before "host:port" on a loopback port."""
    made = Dam(limit=limit)
    with tcp_proxy(target, partial(_pass, None), partial(_pass, made)) as made.address:
        try:
            yield made
        finally:
            made.opened.set()


def _pass(held: Dam | None, source: socket.socket, sink: socket.socket) -> None:
    passed = 0
    with source, sink, contextlib.suppress(OSError):
        while data := source.recv(65536):
            if held is not None and passed + len(data) > held.limit and not held.opened.is_set():
                sink.sendall(data[: held.limit - passed])
                data = data[held.limit - passed :]
                held.full.set()
                held.opened.wait(120)
            sink.sendall(data)
            passed += len(data)
