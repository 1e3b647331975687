"""A TCP proxy that lets so many bytes of what the server sends pass, and the rest once it is opened."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


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
    host, _, port = target.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Dam(f"127.0.0.1:{listener.getsockname()[1]}", limit)

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                there = socket.create_connection((host, int(port)), 10)
                threading.Thread(target=_pass, args=(client, there, None), daemon=True).start()
                threading.Thread(target=_pass, args=(there, client, made), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.opened.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def _pass(source: socket.socket, sink: socket.socket, held: Dam | None) -> None:
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
