"""A blob's way into the pipe that its layer is unpacked from, as fast as it arrives and is read."""

import fcntl
import os
import select
from collections.abc import Callable
from contextlib import suppress

from bulkhead.errors import Cancelled
from image_svc.ingest import Ingest
from image_svc.patience import Patience
from image_svc.pulling.movers import moving
from image_svc.pulling.progress import LayerProgress, LayerState
from image_svc.pulling.turns import Turn

#: Bytes of the pipe; the most an unprivileged process may ask for (pipe(7)).
PIPE_SIZE = 1 << 20


class Feed:
    """Sends a blob down a pipe; the pipe stays the caller's to close."""

    def __init__(
        self, blob: Ingest, pipe: int, progress: LayerProgress, patience: Patience, ended: Callable[[], bool]
    ) -> None:
        """Make the pipe larger, if the user's share of pipe memory allows; `ended` says that nobody will read more."""
        self._blob = blob
        self._pipe = pipe
        self._progress = progress
        self._patience = patience
        self._ended = ended
        self._offset = 0
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def run(self, turn: Turn) -> None:
        """Send everything, or until nobody reads more: the pipe breaks then, or is full.

        Raises what failed of the download, and as the patience does.
        """
        os.set_blocking(self._pipe, False)
        while True:
            if self._offset == self._blob.have and not self._blob.complete:
                turn.rest()
            if not (count := self._blob.wait(self._offset, self._patience)):
                return
            turn.take()
            if self._blob.complete:
                self._progress.state = LayerState.UNPACKING
            try:
                self._move(self._offset + count)
            except BrokenPipeError:
                return

    def _move(self, end: int) -> None:
        """Have the kernel put a part of the blob's file into the pipe, without a copy, up to the byte `end`."""
        while self._offset < end:
            try:
                with moving(self._patience, self._progress.digest):
                    moved = os.splice(
                        self._blob.fd, self._pipe, min(end - self._offset, PIPE_SIZE), offset_src=self._offset
                    )
            except BlockingIOError:
                self._patience.check()
                if self._ended():
                    raise BrokenPipeError from None
                room = select.poll()
                room.register(self._pipe, select.POLLOUT)
                room.poll(1000)
                continue
            if not moved:
                raise Cancelled("partial download was cut short under its reader")
            self._offset += moved
            self._progress.unpacked = self._offset
