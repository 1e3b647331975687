"""Signals during a run: they end it where it waits for something, and are kept for later where it makes something."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Interrupted(Exception):
    """SIGINT or SIGTERM came."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        #: As a shell has it.
        self.status = 128 + number


class Interrupts:
    """Takes both signals during its block, which must be the main thread's."""

    def __init__(self) -> None:
        self._came = 0
        self._allowed = False
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> "Interrupts":
        for number in self._before:
            signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Have Interrupted raised in the block; at once if one came before."""
        self._allowed = True
        try:
            if self._came:
                raise Interrupted(self._came)
            yield
        finally:
            self._allowed = False

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self._came = self._came or number
        if self._allowed:
            self._allowed = False
            raise Interrupted(number)
