"""The standard streams of a process, whoever made it."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from sandbox_svc.shim.loop import Future, Loop
from sandbox_svc.shim.pipes import Outlet, Sink, Source, Tap
from sandbox_svc.shim.sinks import OutputFiles


class IoSpec(NamedTuple):
    """What a request said, word for word."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Streams(Protocol):
    """The streams of one process."""

    stdin: Outlet | None
    stdin_once: bool
    raw_terminal: bool

    def capture(self, stream: str, sink: Sink) -> None:
        """Before the start: send an output stream to a sink."""

    def expose(self, stream: str) -> int:
        """Before the start: return the other end of a stream."""

    def take_terminal(self) -> int:
        """Return the terminal for somebody else to read and write."""

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters."""

    def tap(self, stream: str, tap: Tap) -> None:
        """Let a client see what a stream brings from now on."""

    def output_ended(self) -> Iterator[Future[None]]:
        """Yield the end of each output stream."""

    def reopen_logs(self) -> None:
        """Open every log file anew."""

    def close_stdin(self) -> None:
        """End the process's standard input after what has arrived for it."""

    def drain(self) -> None:
        """Read what the process left."""

    def close(self) -> None:
        """Close everything."""


class Outputs:
    """The output streams of a process, and the files that they go to."""

    __slots__ = ("files", "sources")

    def __init__(self, loop: Loop) -> None:
        self.files = OutputFiles(loop)
        #: By stream: stdout, stderr, and stdin where a named pipe or a terminal feeds it.
        self.sources: dict[str, Source] = {}

    def tap(self, stream: str, tap: Tap) -> None:
        """Let a client see what a stream brings from now on; a stream that has ended gives it nothing."""
        source = self.sources.get(stream)
        if source is None or source.ended.done:
            tap.finish()
        else:
            source.sinks.append(tap)

    def output_ended(self) -> Iterator[Future[None]]:
        """Yield the end of each output stream."""
        for source in self._outputs():
            yield source.ended

    def drain(self) -> None:
        """Read what the process left; a pipe that nobody has written to yet would read as ended."""
        for source in self._outputs():
            source.drain()

    def reopen_logs(self) -> None:
        """Open every log file anew."""
        self.files.reopen()

    def _outputs(self) -> Iterator[Source]:
        for stream in ("stdout", "stderr"):
            if stream in self.sources:
                yield self.sources[stream]
