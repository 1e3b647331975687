"""A TCP proxy that cuts connections after so many bytes of what the client sends."""

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from support.tcp_proxy import tcp_proxy


@dataclass
class Cuts:
    """Where the proxy listens; how many bytes the next connections may send, each, before they are cut."""

    address: str = ""
    limits: list[int] = field(default_factory=list)
    #: Bytes that clients sent in all.
    sent: int = 0
    #: Bytes that they received in all.
    received: int = 0
    #: Connections that were cut.
    cut: int = 0


@contextmanager
def cutting_proxy(target: str) -> Iterator[Cuts]:
    """Run a proxy before "host:port" on a loopback port."""
    cuts = Cuts()
    with tcp_proxy(target, partial(_forward, cuts), partial(_back, cuts)) as cuts.address:
        yield cuts


def _forward(cuts: Cuts, client: socket.socket, there: socket.socket) -> None:
    """Pass on what the client sends; a body counts towards the limit, the small requests before it do not."""
    with client, there, contextlib.suppress(OSError):
        passed = 0
        while data := client.recv(65536):
            there.sendall(data)
            cuts.sent += len(data)
            passed += len(data)
            if cuts.limits and passed > cuts.limits[0]:
                cuts.limits.pop(0)
                cuts.cut += 1
                return


def _back(cuts: Cuts, there: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := there.recv(65536):
            client.sendall(data)
            cuts.received += len(data)
        client.shutdown(socket.SHUT_WR)
