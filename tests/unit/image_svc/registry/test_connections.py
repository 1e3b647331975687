"""The connections to one host: who waits at one can be woken at any time."""

import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

from image_svc.registry.connections import Connections
from image_svc.registry.hosts import Host


class Interrupted(weakref.WeakSet[socket.socket]):
    """Sockets; while somebody goes through them, another thread has a moment for something."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._meanwhile = meanwhile
        self.threads: list[threading.Thread] = []

    def __iter__(self) -> Iterator[socket.socket]:
        for each in super().__iter__():
            self.threads.append(threading.Thread(target=self._meanwhile))
            self.threads[-1].start()
            self.threads[-1].join(0.1)
            yield each


def test_hanging_up_while_others_connect() -> None:
    """Whoever hangs up reaches every connection there is, also while a further one is made."""
    connections = Connections(Host("http", "127.0.0.1:5000"), 1.0)
    here, there = socket.socketpair()
    other = socket.socket()

    def connect(sock: socket.socket) -> None:
        stream = SimpleNamespace(get_extra_info=lambda _: sock)
        connections._trace("connection.connect_tcp.complete", {"return_value": stream})

    sockets = connections._sockets = Interrupted(lambda: connect(other))
    with here, there, other:
        connect(here)

        connections.hang_up()

        assert there.recv(1) == b""
        for thread in sockets.threads:
            thread.join(60)
        assert other in connections._sockets
