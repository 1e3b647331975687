"""Where a container's output goes: its log, a file, or a named pipe."""

import os
from time import time_ns

from bulkhead.errors import InvalidArgument
from sandbox_svc.shim import uris
from sandbox_svc.shim.logs import Formatter, LogFile
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.pipes import Outlet, Sink


class LogSink:
    """One stream of a container on its way into the log file."""

    __slots__ = ("_file", "_formatter")

    def __init__(self, file: LogFile, stream: str, max_line_size: int) -> None:
        self._file = file
        self._formatter = Formatter(stream, max_line_size)

    def write(self, data: bytes) -> None:
        """Format and append."""
        if lines := self._formatter.feed(data, time_ns()):
            self._file.write(*lines)

    def finish(self) -> None:
        """Write the last, unfinished line."""
        if lines := self._formatter.finish(time_ns()):
            self._file.write(*lines)


class PlainSink:
    """Output that is appended to a file as it comes."""

    __slots__ = ("_file",)

    def __init__(self, file: LogFile) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        """Append."""
        self._file.write(data)

    def finish(self) -> None:
        """Nothing is left to do: the file is closed with the process."""


class OutputFiles:
    """The files that one process's output goes to, by URI: stdout and stderr usually share one."""

    __slots__ = ("_files", "_loop")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._files: dict[str, LogFile] = {}

    def sinks(self, stream: str, uri: str) -> list[Sink]:
        """Open what a stream's URI names; nothing for an empty one."""
        kind = uris.parse(uri)
        if kind is None:
            return []
        if isinstance(kind, uris.Fifo):
            return [Outlet(self._loop, open_fifo(kind.path))]
        if isinstance(kind, uris.CriStdin):
            raise InvalidArgument(f"{stream} cannot be {uri!r}")
        if uri not in self._files:
            self._files[uri] = LogFile(kind.path)
        file = self._files[uri]
        return [LogSink(file, stream, kind.max_line_size) if isinstance(kind, uris.CriLog) else PlainSink(file)]

    def reopen(self) -> None:
        """Open every file anew."""
        for file in self._files.values():
            file.reopen()

    def close(self) -> None:
        """Close every file; a second close does nothing."""
        for file in self._files.values():
            file.close()


def open_fifo(path: str) -> int:
    """Open both ends of a named pipe: that never blocks, and its writer survives a reader that comes back."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
