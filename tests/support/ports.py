"""Loopback ports that are free now, and that nobody gets who asks for any port."""

import itertools
import random
import socket
from pathlib import Path

_first, _last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
_high = range(10_000, 65_536)
#: Above the services' own default ports, and not what the kernel gives to those who bind port 0 or connect: one of them
#: would get, before its owner has bound it, a port that was promised.
_promised = [port for port in _high if not _first <= port <= _last] or list(_high)
_shuffled = itertools.cycle(random.sample(_promised, len(_promised)))


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nobody listens on, another one with every call."""
    for port in itertools.islice(_shuffled, len(_promised)):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError("nothing is free")
