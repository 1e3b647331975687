"""Where foreign shims publish their events: accepted and dropped, for the truth is Wait and State.

A stock shim does not start without somebody behind TTRPC_ADDRESS, and it retries for 20 seconds what is refused.
"""

import logging
import socket
import threading
import time
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from bulkhead.ttrpc_frames import REQUEST, Decoder, response

logger = logging.getLogger(__name__)


class EventSink:
    """A ttrpc server that says yes to every Forward; a thread a shim, and there are few foreign shims."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(64)
        threading.Thread(target=self._accept, name="events", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                # Descriptors run out for a while; nobody would accept again if this thread ended.
                logger.warning("%s: a connection is not accepted: %s", self.path, error)
                time.sleep(1.0)
                continue
            threading.Thread(target=self._serve, args=(connection,), name="events", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        decoder, empty = Decoder(), Empty().SerializeToString()
        with connection:
            try:
                while data := connection.recv(64 * 1024):
                    for frame in decoder.feed(data):
                        if frame.kind == REQUEST:
                            connection.sendall(response(frame.stream, empty))
            except OSError as error:
                logger.debug("a shim's event connection ended: %s", error)
