"""A shim's own log: a small file beside its sockets, or the named pipe that containerd reads."""

import os
from contextlib import suppress

from bulkhead import log

#: The file starts anew beyond this many bytes: it stands on a tmpfs.
LIMIT = 1 << 20


class Diary:
    """A text stream that never blocks and never fails: lines that cannot be written are lost."""

    def __init__(self) -> None:
        self._fd = -1
        self._path = ""

    def begin(self, path: str) -> None:
        """Write to this file, which is made when there is something to write."""
        self._path = path

    def open(self) -> None:
        """Make the file, or open the named pipe, now."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        with suppress(OSError):
            self._fd = os.open(self._path, flags, 0o600)

    def take_logs(self, level: str) -> None:
        """Send all of this process's log records here."""
        log.setup("shim", level, "text", self)  # type: ignore[arg-type]  # a handler needs write and flush, no more

    def write(self, text: str) -> int:
        """Append."""
        if self._fd < 0 and self._path:
            self.open()
        with suppress(OSError):
            if self._fd >= 0:
                if os.fstat(self._fd).st_size > LIMIT:
                    os.ftruncate(self._fd, 0)
                os.write(self._fd, text.encode(errors="replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
