"""A point in time by which something is to be done."""

import math
import time

from bulkhead.errors import DeadlineExceeded


class Deadline:
    """So many seconds from now, for a step that is named in the error, and `each` for one answer that it waits for."""

    def __init__(self, seconds: float, step: str, each: float = math.inf) -> None:
        self._seconds, self._step, self._each = seconds, step, each
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left; DeadlineExceeded if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{self._step} took longer than {self._seconds:g} s")
        return left

    @property
    def for_answer(self) -> float:
        """Seconds that the next answer of a token or key provider may take; DeadlineExceeded if none are left."""
        return min(self._each, self.left)

    def check(self) -> None:
        """Raise DeadlineExceeded if the time has come."""
        _ = self.left
