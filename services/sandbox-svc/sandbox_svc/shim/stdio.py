"""The standard streams of one process, from what Create or Exec said about them."""

import os

from bulkhead.errors import InvalidArgument
from sandbox_svc.shim import console, uris
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.pipes import Outlet, Sink, Source, pipe
from sandbox_svc.shim.sinks import open_fifo
from sandbox_svc.shim.streamset import IoSpec, Outputs

_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}


class ProcessIO(Outputs):
    """The shim's ends of a process's streams, and until it has started the process's own ends."""

    __slots__ = (
        "_child",
        "_loop",
        "_null",
        "_other_end",
        "_owner",
        "_spec",
        "_terminal_sinks",
        "master",
        "raw_terminal",
        "stdin",
        "stdin_once",
    )

    def __init__(self, loop: Loop, null: int, spec: IoSpec, uid: int = 0, gid: int = 0) -> None:
        super().__init__(loop)
        self._loop, self._null, self._spec, self._owner = loop, null, spec, (uid, gid)
        self._child: list[int] = []
        self._terminal_sinks: list[Sink] = []
        self.stdin: Outlet | None = None
        self.stdin_once = False
        self.master = -1
        # While the process lives we have its side of the terminal open as well: without any user, which is how a
        # runtime may leave it for a moment, a terminal reads as ended.
        self._other_end = -1
        #: The terminal belongs to somebody else, who is given it whole: it is neither read nor written here.
        self.raw_terminal = False
        try:
            self._open_input()
            self._open_outputs()
        except BaseException:
            self.close()
            raise

    def _open_input(self) -> None:
        kind = uris.parse(self._spec.stdin)
        if not isinstance(kind, uris.CriStdin | uris.Fifo | None):
            raise InvalidArgument(f"stdin {self._spec.stdin!r} is neither a named pipe nor cri-stdin")
        self.stdin_once = isinstance(kind, uris.CriStdin) and kind.once
        if self._spec.terminal:
            return
        if kind is None:
            self._child.append(-1)
            return
        reader, writer = pipe(*self._owner)
        self._child.append(reader)
        self.stdin = Outlet(self._loop, writer)

    def _open_outputs(self) -> None:
        for stream, uri in (("stdout", self._spec.stdout), ("stderr", self._spec.stderr)):
            if self._spec.terminal and stream == "stderr":
                return
            if self._spec.terminal:
                self._terminal_sinks = self.files.sinks(stream, uri)
            elif not uri:
                self._child.append(-1)
            else:
                sinks = self.files.sinks(stream, uri)
                reader, writer = pipe(*self._owner)
                self._child.append(writer)
                self.sources[stream] = Source(self._loop, reader, sinks)

    def child(self) -> list[int]:
        """Return the descriptors that become the process's 0, 1 and 2."""
        return [fd if fd >= 0 else self._null for fd in self._child or (-1, -1, -1)]

    def capture(self, stream: str, sink: Sink) -> None:
        """Before the start: send an output stream that had no place to go to a sink."""
        reader, writer = pipe(*self._owner)
        self._child[_NUMBERS[stream]] = writer
        self.sources[stream] = Source(self._loop, reader, [sink])

    def expose(self, stream: str) -> int:
        """Before the start: return the other end of a stream that had no place to go; it is the caller's to close."""
        reader, writer = pipe(*self._owner)
        ours, theirs = (writer, reader) if stream == "stdin" else (reader, writer)
        self._child[_NUMBERS[stream]] = theirs
        return ours

    def started(self) -> None:
        """Close the process's own ends, so that its exit ends the streams."""
        for fd in self._child:
            if fd >= 0:
                os.close(fd)
        self._child.clear()

    def adopt(self, master: int) -> None:
        """Serve the terminal that the runtime made."""
        self.master = master
        self._other_end = console.open_other_end(master)
        if self.raw_terminal:
            return
        self.stdin = Outlet(self._loop, os.dup(master))
        self.sources["stdout"] = Source(self._loop, os.dup(master), self._terminal_sinks)
        self._terminal_sinks = []

    def feed(self) -> None:
        """After the start: let the named pipe, if there is one, feed standard input.

        Not before: a client of containerd that has nothing more to write says so with CloseIO, and loses that call
        where the pipe took its bytes before Create was answered.
        """
        kind = uris.parse(self._spec.stdin)
        if isinstance(kind, uris.Fifo) and self.stdin is not None:
            self.sources["stdin"] = Source(self._loop, open_fifo(kind.path), [self.stdin], feeds_one=True)

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; a process without one ignores it."""
        if self.master >= 0:
            console.resize(self.master, width, height)

    def close_stdin(self) -> None:
        """End the process's standard input after what has arrived for it; a terminal has no such end."""
        source = self.sources.pop("stdin", None)
        if source is not None:
            source.drain()
            source.close()  # finishes the outlet as well
        elif self.stdin is not None and self.master < 0:
            self.stdin.finish()

    def take_terminal(self) -> int:
        """Return the terminal for somebody else to read and write; it is the caller's to close."""
        return os.dup(self.master)

    def drain(self) -> None:
        """Read what the process, which has ended, left in its pipes or terminal."""
        self._leave_terminal()
        super().drain()

    def close(self) -> None:
        """Close everything; a second close does nothing."""
        self.started()
        self._leave_terminal()
        for source in self.sources.values():
            source.drain()
            source.close()
        for sink in self._terminal_sinks:
            sink.finish()
        if self.stdin is not None:
            self.stdin.close()
        self.files.close()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def _leave_terminal(self) -> None:
        if self._other_end >= 0:
            os.close(self._other_end)
            self._other_end = -1
