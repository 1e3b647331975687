"""The streams of a process that a foreign shim has made: named pipes, of which the keeper holds the other ends."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress

from sandbox_svc.shim import uris
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.pipes import Outlet, SharedInput, Sink, Source, pipe
from sandbox_svc.shim.sinks import open_fifo
from sandbox_svc.shim.streamset import IoSpec, Outputs


class KeptIO(Outputs):
    """Named pipes `<prefix>-stdin`, `-stdout` and `-stderr`, made as needed and removed at the end."""

    __slots__ = (
        "_close_input",
        "_fifos",
        "_loop",
        "_prefix",
        "_resize",
        "_spec",
        "_terminal",
        "exec_id",
        "raw_terminal",
        "stdin",
        "stdin_once",
    )

    def __init__(
        self,
        loop: Loop,
        prefix: str,
        spec: IoSpec,
        close_input: Callable[[], object],
        resize: Callable[[int, int], object],
        exec_id: str = "",
    ) -> None:
        super().__init__(loop)
        #: What the foreign shim calls the process; empty for an init.
        self.exec_id = exec_id
        self._loop, self._prefix, self._spec = loop, prefix, spec
        #: The foreign shim holds a writer of its own for standard input, so it must be told when the end has come.
        self._close_input, self._resize = close_input, resize
        self._fifos: dict[str, str] = {}
        self._terminal: socket.socket | None = None
        self.stdin: Outlet | None = None
        self.raw_terminal = False
        kind = uris.parse(spec.stdin)
        self.stdin_once = isinstance(kind, uris.CriStdin) and kind.once
        if isinstance(kind, uris.CriStdin):
            self._open_input()
        for stream, uri in (("stdout", spec.stdout), ("stderr", spec.stderr)):
            if uri and not (spec.terminal and stream == "stderr") and not isinstance(uris.parse(uri), uris.Fifo):
                self._read(stream, self.files.sinks(stream, uri))

    def names(self) -> IoSpec:
        """Return what the foreign shim is told: our pipes, and what the caller named where we made none."""
        given = self._spec

        def name(stream: str, uri: str) -> str:
            return self._fifos.get(stream) or (uri if isinstance(uris.parse(uri), uris.Fifo) else "")

        return IoSpec(
            name("stdin", given.stdin), name("stdout", given.stdout), name("stderr", given.stderr), given.terminal
        )

    def prepare(self) -> None:
        """Before the start of a process whose terminal somebody else is given: join its pipes into one socket."""
        if not (self._spec.terminal and self.raw_terminal):
            return
        ours, self._terminal = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._open_input()
        assert self.stdin is not None
        self.sources["stdin"] = Source(
            self._loop, ours.dup().detach(), [SharedInput(self.stdin, once=True)], feeds_one=True
        )
        self._read("stdout", [Outlet(self._loop, ours.detach())])

    def capture(self, stream: str, sink: Sink) -> None:
        """Before the start: send an output stream to a sink."""
        self._read(stream, [sink])

    def expose(self, stream: str) -> int:
        """Before the start: return the other end of a stream; it is the caller's to close."""
        reader, writer = pipe()
        if stream == "stdin":
            self._open_input()
            assert self.stdin is not None
            self.sources[stream] = Source(self._loop, reader, [SharedInput(self.stdin, once=True)], feeds_one=True)
            return writer
        self._read(stream, [Outlet(self._loop, writer)])
        return reader

    def take_terminal(self) -> int:
        """Return a socket that carries the terminal's input and output; it is the caller's to close."""
        assert self._terminal is not None
        return self._terminal.dup().detach()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters."""
        self._resize(width, height)

    def close_stdin(self) -> None:
        """End the process's standard input after what has arrived for it."""
        if self.stdin is not None:
            self.stdin.finish()
        else:
            self._close_input()

    def close(self) -> None:
        """Close everything and remove the pipes; a second close does nothing."""
        for source in list(self.sources.values()):
            source.close()
        if self.stdin is not None:
            self.stdin.close()
        if self._terminal is not None:
            self._terminal.close()
        self.files.close()
        for path in self._fifos.values():
            with suppress(OSError):
                os.unlink(path)
        self._fifos.clear()

    def _fifo(self, stream: str) -> str:
        path = self._fifos[stream] = f"{self._prefix}-{stream}"
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        return path

    def _read(self, stream: str, sinks: list[Sink]) -> None:
        # Not O_RDWR, which never sees the end; without a writer it is merely quiet until the first one comes.
        fd = os.open(self._fifo(stream), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.sources[stream] = Source(self._loop, fd, sinks)

    def _open_input(self) -> None:
        self.stdin = Outlet(self._loop, open_fifo(self._fifo("stdin")))
        self.stdin.closed.then(lambda _: self._close_input())
