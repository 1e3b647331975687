"""Port forwarding: TCP connections made inside a pod's network namespace."""

import errno
import os
import socket

from bulkhead.errors import NotFound, Unavailable
from sandbox_svc import linux
from sandbox_svc.shim.loop import WRITE, Future, Loop

#: Seconds that a connection inside the pod may take.
CONNECT_WAIT = 10.0


async def connect(loop: Loop, netns: str, port: int) -> socket.socket:
    """Return a connection to a port of the pod's loopback, over IPv4 or else IPv6; Unavailable names both failures."""
    failures = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            sock = _socket_in(netns, family)
        except FileNotFoundError as error:
            raise NotFound(f"network namespace {netns} is gone") from error
        except OSError as error:
            failures.append(f"{host}: {error.strerror}")
            continue
        failure = await _connected(loop, sock, host, port)
        if failure is None:
            sock.setblocking(True)
            return sock
        sock.close()
        failures.append(f"{host}: {failure}")
    raise Unavailable(f"port {port} does not answer in the pod ({', '.join(failures)})")


def _socket_in(netns: str, family: int) -> socket.socket:
    """Make a socket that belongs to a network namespace; only for a process of one thread."""
    if not netns:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(there, linux.CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        finally:
            linux.setns(home, linux.CLONE_NEWNET)
    finally:
        os.close(home)


async def _connected(loop: Loop, sock: socket.socket, host: str, port: int) -> str | None:
    """Connect; return why it failed, None if it did not."""
    number = sock.connect_ex((host, port))
    if number == errno.EINPROGRESS:
        gate: Future[None] = Future()
        timer = loop.later(CONNECT_WAIT, lambda: gate.set(None))
        fd = sock.fileno()
        loop.watch(fd, WRITE, lambda _: gate.set(None))
        await gate
        loop.unwatch(fd)
        timer.cancel()
        if timer.expired:
            return f"no answer within {CONNECT_WAIT:g} s"
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return os.strerror(number) if number else None
