"""A number of slots for work, given to those who wait in the order in which they came."""

import threading
from collections import deque
from concurrent.futures import Future


class Slots:
    """A semaphore whose waiters sleep until it is their turn: scores of them that look now and then would be felt.

    `Patience.acquire` takes one.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[Future[None]] = deque()

    def ask(self) -> "Future[None]":
        """Return a future that is settled when a slot is the caller's, which may be so at once."""
        turn: Future[None] = Future()
        with self._lock:
            if not self._free:
                self._waiting.append(turn)
                return turn
            self._free -= 1
        turn.set_result(None)
        return turn

    def give_up(self, turn: "Future[None]") -> None:
        """Want a slot no more that was asked for; one that was given meanwhile goes to others."""
        if not turn.cancel():
            self.release()

    def release(self) -> None:
        """Give a slot to whoever has waited longest."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                turn = self._waiting.popleft()
            if turn.set_running_or_notify_cancel():
                turn.set_result(None)
                return
