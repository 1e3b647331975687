"""Traffic counters of pods, by interface.

Read from /proc/thread-self/net/dev by one thread that steps through the pods' namespaces: 0.02 ms a pod. A netlink
dump says no more about counters, and costs 2 ms a pod and 21 MB through pyroute2. /proc/<pid>/net/dev would save the
step into the namespace, but a pid may be another process's by now; a pinned namespace cannot.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sandbox_svc import linux


@dataclass(frozen=True)
class Interface:
    """What an interface has received and sent since it was made."""

    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int
    rx_packets: int = 0
    rx_dropped: int = 0
    tx_packets: int = 0
    tx_dropped: int = 0


def read(namespaces: Iterable[str]) -> dict[str, tuple[Interface, ...]]:
    """Return the interfaces of each namespace (path of its pin) without the loopback; those gone are left out."""
    paths = list(dict.fromkeys(namespaces))
    found: dict[str, tuple[Interface, ...]] = {}

    def walk() -> None:
        for path in paths:
            try:
                found[path] = _read_one(path)
            except OSError:
                continue  # removed meanwhile: its pod has no traffic to report

    if paths:
        thread = threading.Thread(target=walk, name="network-stats", daemon=True)
        thread.start()
        thread.join()
    return found


def _read_one(path: str) -> tuple[Interface, ...]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.setns(fd, linux.CLONE_NEWNET)
    finally:
        os.close(fd)
    with open("/proc/thread-self/net/dev", encoding="ascii", errors="replace") as file:
        return parse(file.read().splitlines()[2:])


def parse(lines: Sequence[str]) -> tuple[Interface, ...]:
    """Return the interfaces of a /proc/net/dev without its two heading lines, the loopback left out.

    An interface's name may hold any byte but a slash and white space, so the last colon ends it.
    """
    interfaces = []
    for line in lines:
        name, _, numbers = line.rpartition(":")
        fields = numbers.split()
        if name.strip() != "lo" and len(fields) >= 12:
            received, sent = [int(field) for field in fields[:4]], [int(field) for field in fields[8:12]]
            interfaces.append(_interface(name.strip(), received, sent))
    return tuple(interfaces)


def _interface(name: str, received: Sequence[int], sent: Sequence[int]) -> Interface:
    """Take each direction's bytes, packets, errors and drops, in the order of /proc/net/dev."""
    return Interface(
        name,
        rx_bytes=received[0],
        rx_packets=received[1],
        rx_errors=received[2],
        rx_dropped=received[3],
        tx_bytes=sent[0],
        tx_packets=sent[1],
        tx_errors=sent[2],
        tx_dropped=sent[3],
    )
