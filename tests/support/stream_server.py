"""stream-svc's server in a thread of the test's process."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from stream_svc.server import Server
from stream_svc.session import Limits


class RunningServer:
    """A server on a free port of loopback, with its event loop in a thread."""

    def __init__(self, state: Path, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.server = asyncio.run_coroutine_threadsafe(self._make(state, limits, tls, listener), self.loop).result(30)

    async def _make(self, state: Path, limits: Limits, tls: ssl.SSLContext | None, listener: socket.socket) -> Server:
        server = Server(state, limits, tls)
        await server.start([listener])
        return server

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def stop(self) -> None:
        """End the sessions as SIGTERM does."""
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(30)

    def close(self) -> None:
        """Stop the server and its loop."""
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)


#: Makes servers with limits of the caller's choice.
ServerMaker = Callable[..., RunningServer]
