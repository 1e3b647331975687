"""A point in time by which something is to be done."""

import time

from bulkhead.errors import DeadlineExceeded


class Deadline:
    """So many seconds from now, for a step that is named in the error."""

    def __init__(self, seconds: float, step: str) -> None:
        self._seconds, self._step = seconds, step
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left; DeadlineExceeded if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{self._step} took longer than {self._seconds:g} s")
        return left

    def check(self) -> None:
        """Raise DeadlineExceeded if the time has come."""
        _ = self.left
