"""A container's log file, shown as what the container wrote (CRI log format: time, stream, F or P, text)."""

import os
import sys
from pathlib import Path

_PIECE = 1 << 20


class Follower:
    """Reads a log file as it grows and writes its contents to our own standard streams."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""

    def show(self) -> bool:
        """Write what has come since; return whether anything had."""
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
        piece = os.read(self._fd, _PIECE)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            stream, text = parse(line)
            target = sys.stderr.buffer if stream == b"stderr" else sys.stdout.buffer
            target.write(text)
            target.flush()
        return bool(piece)


def parse(line: bytes) -> tuple[bytes, bytes]:
    """Return a log line's stream and what was written to it, its line feed included unless it was a part of a line."""
    parts = line.split(b" ", 3)
    if len(parts) < 3:
        return b"stdout", line + b"\n"
    text = parts[3] if len(parts) == 4 else b""
    return parts[1], text if parts[2] == b"P" else text + b"\n"
