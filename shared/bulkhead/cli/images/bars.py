"""Progress bars: one a layer with its rate and the time left, and one for all of them."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from bulkhead.cli.images import text
from bulkhead.cli.images.stages import STAGES, STATES, amounts
from bulkhead.proto import images_pb2 as pb

_AT_REST = frozenset({pb.Part.DONE, pb.Part.PRESENT, pb.Part.FAILED})
#: Columns of a line without name and bar: state, sizes, rate and time left with the gaps between; the first two alone.
_WHOLE, _SHORT = 50, 26
#: Columns of a digest as it is shown, and of the smallest bar.
_DIGEST, _BAR = 12, 10


class _Rate(ProgressColumn):
    """How fast it goes."""

    def render(self, task: Task) -> Text:
        """Draw nothing where that cannot be said; what has come to rest has no rate any more."""
        speed = None if task.finished or task.stop_time else task.speed
        return Text(f"{text.size(speed)}/s" if speed else "", style="progress.data.speed")


class _Left(ProgressColumn):
    """The time left."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Draw nothing where that cannot be said."""
        left = None if task.finished or task.stop_time else task.time_remaining
        return Text(f"{text.duration(left)} left" if left is not None else "", style="progress.remaining")


class Bars:
    """Draws on standard error, as much as fits the terminal: with many layers those that move, and always the sums."""

    def __init__(self, verb: str, console: Console | None = None) -> None:
        self._verb = verb
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            *_columns(self._console.width), console=self._console, refresh_per_second=8, expand=False
        )
        self._room, _, _ = _widths(self._console.width)
        self._tasks: dict[str, TaskID] = {}
        self._parts: dict[str, pb.Transfer] = {}
        #: Of the tasks, those that are not layers, and the layers that have come to rest.
        self._sums: set[str] = set()
        self._rested: set[str] = set()
        self._progress.start()

    def show(self, transfer: pb.Transfer) -> None:
        """Draw a transfer as it is now."""
        for part in transfer.parts:
            state = self._verb if part.state == pb.Part.MOVING else STATES[part.state]
            self._draw(part.digest, text.short(part.digest), state, part.done, part.size)
            if part.state in _AT_REST:
                self._rested.add(part.digest)
                self._progress.stop_task(self._tasks[part.digest])
        self._parts[transfer.id] = transfer
        done, total = amounts(each for each in self._parts.values() if each.image == transfer.image)
        state = self._verb if transfer.stage == pb.Transfer.MOVING else STAGES[transfer.stage]
        self._sums.add(transfer.image)
        self._draw(transfer.image, text.printable(transfer.image), state, done, total)
        self._fit()

    def bytes(self, done: int, total: int) -> None:
        """Draw how much of an archive is there."""
        self._sums.add("")
        self._draw("", "archive", "done" if total and done >= total else self._verb, done, total)

    def close(self) -> None:
        """Draw the last state of everything and let go of the terminal."""
        for task in self._tasks.values():
            self._progress.update(task, visible=True)
        self._progress.stop()

    def _draw(self, key: str, name: str, state: str, done: int, total: int) -> None:
        if key not in self._tasks:
            # What tells names apart stands at their end.
            shown = name if len(name) <= self._room else f"…{name[len(name) - self._room + 1 :]}"
            self._tasks[key] = self._progress.add_task(shown, total=None, state=state)
        self._progress.update(self._tasks[key], completed=done, total=total or None, state=state)

    def _fit(self) -> None:
        """Hide what there are no lines for: layers at rest from the first on, then moving ones from the last on."""
        layers = [key for key in self._tasks if key not in self._sums]
        excess = len(self._tasks) + 1 - self._console.height
        resting = [key for key in layers if key in self._rested]
        moving = [key for key in reversed(layers) if key not in self._rested]
        hidden = set([*resting, *moving][: max(excess, 0)])
        for key in layers:
            self._progress.update(self._tasks[key], visible=key not in hidden)


def _widths(width: int) -> tuple[int, int, bool]:
    """Return what fits a terminal's line: columns of the name and of the bar, 0 for none, and whether the rate does."""
    whole = width >= _WHOLE + _DIGEST + 1
    room = width - (_WHOLE if whole else _SHORT)
    bar = min(30, max(_BAR, room - 30)) if room >= _DIGEST + _BAR + 2 else 0
    return max(room - bar - (2 if bar else 1), 1), bar, whole


def _columns(width: int) -> list[ProgressColumn]:
    """Return the columns for lines of that width, which are never broken: first the bar goes, then rate and time."""
    _, bar, whole = _widths(width)

    def alone() -> Column:
        return Column(no_wrap=True)

    made: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False, table_column=alone()),
        TextColumn("{task.fields[state]}", markup=False, table_column=alone()),
        *([BarColumn(bar_width=bar)] if bar else []),
        DownloadColumn(table_column=alone()),
    ]
    return [*made, _Rate(table_column=alone()), _Left(table_column=alone())] if whole else made
