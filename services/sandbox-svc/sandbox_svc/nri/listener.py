"""The socket that plugins connect to."""

import contextlib
import errno
import logging
import os
import socket
import struct
import threading
import time
from pathlib import Path

from bulkhead.sockets import is_live
from sandbox_svc.nri.registry import Registry

logger = logging.getLogger(__name__)

#: Plugins that may be connected at a time, registered or not.
CONNECTION_LIMIT = 64


class Listener:
    """Accepts plugins for a registry; each is registered in a thread of its own, so that none holds up another."""

    def __init__(self, path: str, registry: Registry) -> None:
        self.path, self._registry = path, registry
        #: Why no plugin can connect; empty while it can.
        self.problem = ""
        self._socket: socket.socket | None = None
        self._inode = 0
        self._lock = threading.Lock()
        self._registering = 0

    def start(self) -> None:
        """Open the socket, for root alone. A socket that somebody listens on is left to them: `problem` says so."""
        if is_live(self.path):
            self.problem = f"{self.path} is another process's: NRI plugins cannot connect to this runtime"
        else:
            try:
                self._socket = self._open()
            except OSError as error:
                self.problem = f"{self.path}: {error.strerror or error}: NRI plugins cannot connect"
        if self._socket is None:
            logger.error("%s", self.problem)
            return
        threading.Thread(target=self._accept, args=(self._socket,), name="nri accept", daemon=True).start()
        logger.info("NRI plugins may connect to %s", self.path)

    def stop(self) -> None:
        """Close the socket and remove it, unless another process has put its own there."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    def _open(self) -> socket.socket:
        """Bind under a name of our own first: the socket never stands under its name with another mode."""
        directory, temporary = Path(self.path).parent, f"{self.path}.{os.getpid()}"
        # A directory that is there already may be anybody's, such as /run: its mode stays.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            listener.bind(temporary)
            os.chmod(temporary, 0o600)
            self._inode = os.stat(temporary).st_ino
            listener.listen(16)
            os.rename(temporary, self.path)
        except OSError:
            listener.close()
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if listener.fileno() < 0 or error.errno in (errno.EINVAL, errno.EBADF):
                    return
                logger.warning("NRI: %s: %s", self.path, error)
                time.sleep(1.0)  # out of descriptors, most likely
                continue
            with self._lock:
                full = self._registering + len(self._registry.plugins) >= CONNECTION_LIMIT
                self._registering += not full
            if full:
                logger.error("NRI: %d plugins are connected already: one more is refused", CONNECTION_LIMIT)
                connection.close()
                continue
            threading.Thread(target=self._admit, args=(connection,), name="nri register", daemon=True).start()

    def _admit(self, connection: socket.socket) -> None:
        try:
            self._registry.admit(self._registry.plugin(connection), f"process {_peer(connection)}")
        except Exception:
            logger.exception("NRI: a plugin could not be admitted")
            connection.close()
        finally:
            with self._lock:
                self._registering -= 1


def _peer(connection: socket.socket) -> int:
    """Return the process at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iii"))
    return int(struct.unpack("iii", raw)[0])
