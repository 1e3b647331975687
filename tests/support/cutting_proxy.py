"""A TCP proxy that cuts connections after so many bytes of what the client sends."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


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
    host, _, port = target.rpartition(":")
    cuts = Cuts()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cuts.address = f"127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                there = socket.create_connection((host, int(port)), 10)
                threading.Thread(target=_forward, args=(client, there, cuts), daemon=True).start()
                threading.Thread(target=_back, args=(there, client, cuts), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield cuts
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def _forward(client: socket.socket, there: socket.socket, cuts: Cuts) -> None:
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


def _back(there: socket.socket, client: socket.socket, cuts: Cuts) -> None:
    with contextlib.suppress(OSError):
        while data := there.recv(65536):
            client.sendall(data)
            cuts.received += len(data)
        client.shutdown(socket.SHUT_WR)
