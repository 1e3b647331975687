"""Progress bars: one a layer with its rate and the time left, and one for all of them."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bulkhead.cli.images import text
from bulkhead.cli.images.stages import STAGES, STATES, amounts
from bulkhead.proto import images_pb2 as pb

_AT_REST = frozenset({pb.Part.DONE, pb.Part.PRESENT, pb.Part.FAILED})


class Bars:
    """Draws on standard error."""

    def __init__(self, verb: str, console: Console | None = None) -> None:
        self._verb = verb
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[state]}", markup=False),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=console or Console(stderr=True),
            refresh_per_second=8,
        )
        self._tasks: dict[str, TaskID] = {}
        self._parts: dict[str, pb.Transfer] = {}
        self._progress.start()

    def show(self, transfer: pb.Transfer) -> None:
        """Draw a transfer as it is now."""
        for part in transfer.parts:
            state = self._verb if part.state == pb.Part.MOVING else STATES[part.state]
            self._draw(part.digest, text.short(part.digest), state, part.done, part.size)
            if part.state in _AT_REST:
                self._progress.stop_task(self._tasks[part.digest])
        self._parts[transfer.id] = transfer
        done, total = amounts(self._parts.values())
        state = self._verb if transfer.stage == pb.Transfer.MOVING else STAGES[transfer.stage]
        self._draw(transfer.image, text.printable(transfer.image), state, done, total)

    def bytes(self, done: int, total: int) -> None:
        """Draw how much of an archive is there."""
        self._draw("", "archive", self._verb, done, total)

    def close(self) -> None:
        """Draw the last state and let go of the terminal."""
        self._progress.stop()

    def _draw(self, key: str, name: str, state: str, done: int, total: int) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(name, total=None, state=state)
        self._progress.update(self._tasks[key], completed=done, total=total or None, state=state)
