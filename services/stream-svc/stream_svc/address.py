"""Where stream-svc listens, and what it tells others to connect to."""

import contextlib
import ipaddress
import socket
from pathlib import Path

from bulkhead import files
from bulkhead.errors import InvalidArgument, Unavailable

_LOOPBACK = "127.0.0.1"


def listen(address: str, port: str, memory: Path) -> socket.socket:
    """Return the listening socket for `stream_server_address` and `stream_server_port` ("0": any free port).

    A free port is remembered in the file `memory` and taken again if it can be, so that URLs handed out before a
    restart stay good.
    """
    number = _number(port)
    if number == 0:
        with contextlib.suppress(OSError, InvalidArgument, UnicodeDecodeError):
            return _bind(address, _number(memory.read_text()))
    try:
        listener = _bind(address, number)
    except OSError as error:
        raise Unavailable(f"cannot listen on {address or '*'}:{number}: {error.strerror or error}") from error
    if number == 0:
        with contextlib.suppress(OSError):
            files.write_atomic(memory, str(listener.getsockname()[1]).encode(), durable=False)
    return listener


def _number(port: str) -> int:
    if port.isascii() and port.isdigit() and int(port) < 65536:
        return int(port)
    raise InvalidArgument(f'stream_server_port "{port}" is not a number from 0 to 65535')


def _bind(address: str, port: int) -> socket.socket:
    """Bind to the address; without one to all of them, over both protocols where the kernel has both."""
    if not address:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        return socket.create_server(("", port), backlog=128)
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((address, port), family=family, backlog=128)


def base_url(address: str, port: int, *, tls: bool) -> str:
    """Return the URL in front of `/exec/…`: the configured address, or the node's where all are listened on."""
    host = node_address() if _is_any(address) else address
    if ":" in host:
        host = f"[{host}]"
    return f"{'https' if tls else 'http'}://{host}:{port}"


def node_address() -> str:
    """Return the address that the node uses towards others, or loopback if it has no route.

    Connecting a UDP socket sends nothing; it makes the kernel choose a source address. The targets are documentation
    addresses (RFC 5737, RFC 3849).
    """
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    return _LOOPBACK


def _is_any(address: str) -> bool:
    if not address:
        return True
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False
