"""A TCP proxy on the loopback whose two directions are the test's own functions."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Passes on what comes out of the first socket into the second, until it likes no more.
Forward = Callable[[socket.socket, socket.socket], None]


@contextmanager
def tcp_proxy(target: str, there: Forward, back: Forward) -> Iterator[str]:
    """Run a proxy before "host:port" and hand out its address; each direction of each connection has a thread.

    `there` is called with the client's socket and the server's, `back` with the server's and the client's.
    """
    host, _, port = target.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                server = socket.create_connection((host, int(port)), 120)
                threading.Thread(target=there, args=(client, server), daemon=True).start()
                threading.Thread(target=back, args=(server, client), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)
