"""One epoll loop, timers, and coroutines that wait for futures: of asyncio what a shim needs, in a tenth of its memory.

A coroutine waits with `await future`. Nothing here may block; nothing here is used from a second thread.
"""

import heapq
import itertools
import logging
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

from bulkhead.errors import DeadlineExceeded

T = TypeVar("T")

logger = logging.getLogger(__name__)

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Future(Generic[T]):
    """A value, or an error, that will be there later; set once."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], object]] | None = None

    def set(self, value: T) -> None:
        """Settle with a value; a future that is settled already stays as it is."""
        if not self.done:
            self._value = value
            self._settle()

    def fail(self, error: BaseException) -> None:
        """Settle with an error; a future that is settled already stays as it is."""
        if not self.done:
            self._error = error
            self._settle()

    def then(self, callback: "Callable[[Future[T]], object]") -> None:
        """Call back when settled, or at once if it is."""
        if self.done:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        """Return the value or raise the error."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # settled with a T

    def __await__(self) -> "Generator[Future[T], None, T]":
        if not self.done:
            yield self
        return self.result()

    def _settle(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback(self)


class Timer:
    """A call that is to come; `cancel` forgets it."""

    __slots__ = ("callback", "expired")

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback
        #: Whether its time came.
        self.expired = False

    def cancel(self) -> None:
        """Do not call."""
        self.callback = None


class Loop:
    """Descriptors, timers and coroutines of one process."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._ready: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._sweep_at = 64
        self._numbers = itertools.count()
        self._running = True

    def open(self) -> None:
        """Begin in this process: an epoll instance that a child inherits would be its parent's as well."""
        self._epoll = select.epoll()

    def watch(self, fd: int, events: int, handler: Callable[[int], object]) -> None:
        """Call `handler(events)` whenever the descriptor is ready; a second watch replaces the first."""
        assert self._epoll is not None
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; to be called before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            assert self._epoll is not None
            self._epoll.unregister(fd)

    def soon(self, callback: Callable[[], object]) -> None:
        """Call in this turn of the loop or the next."""
        self._ready.append(callback)

    def later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call after so many seconds."""
        if len(self._timers) > self._sweep_at:
            self._sweep()
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), timer))
        return timer

    def spawn(self, coroutine: Coroutine[Any, None, T]) -> Future[T]:
        """Run a coroutine; the future is what it returns or raises. Its first part runs at once."""
        finished: Future[T] = Future()
        self._step(coroutine, finished)
        return finished

    def detach(self, coroutine: Coroutine[Any, None, object]) -> None:
        """Run a coroutine for its effect; an error is logged."""
        self.spawn(coroutine).then(_complain)

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        gate: Future[None] = Future()
        self.later(seconds, lambda: gate.set(None))
        await gate

    async def within(self, future: Future[T], seconds: float, what: str) -> T:
        """Wait for a future at most so long; DeadlineExceeded names what was waited for, and the future stays alive."""
        gate: Future[None] = Future()
        timer = self.later(seconds, lambda: gate.set(None))
        future.then(lambda _: gate.set(None))
        await gate
        timer.cancel()
        if not future.done:
            raise DeadlineExceeded(f"{what} did not end within {seconds:g} s")
        return future.result()

    def close(self) -> None:
        """Close the epoll descriptor; nothing can be watched any more."""
        if self._epoll is not None:
            self._epoll.close()

    def stop(self) -> None:
        """End `run` after the present turn."""
        self._running = False

    def run(self) -> None:
        """Serve until stopped. A handler's error is logged and never ends the loop."""
        while self._running:
            self.turn()

    def turn(self, limit: float = 3600.0) -> None:
        """Wait for the next thing to happen, at most `limit` seconds, and deal with it."""
        assert self._epoll is not None
        for fd, events in self._epoll.poll(0 if self._ready else min(limit, self._patience())):
            handler = self._handlers.get(fd)  # an earlier handler of this turn may have closed it
            if handler is not None:
                _guarded(handler, events)
        self._expire()
        for _ in range(len(self._ready)):
            _guarded(self._ready.popleft())

    def _sweep(self) -> None:
        """Forget cancelled timers, whose time may be far away."""
        self._timers = [entry for entry in self._timers if entry[2].callback is not None]
        heapq.heapify(self._timers)
        self._sweep_at = max(64, 2 * len(self._timers))

    def _patience(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 3600.0

    def _expire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.expired = True
                _guarded(timer.callback)

    def _step(self, coroutine: Coroutine[Any, None, T], finished: Future[T]) -> None:
        try:
            awaited: Future[Any] = coroutine.send(None)
        except StopIteration as stop:
            finished.set(stop.value)
        except Exception as error:
            finished.fail(error)
        else:
            awaited.then(lambda _: self.soon(lambda: self._step(coroutine, finished)))


class Turn:
    """A queue of coroutines of which one goes at a time, in the order in which they came."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._held:
            gate: Future[None] = Future()
            self._waiting.append(gate)
            await gate  # handed over held
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._waiting:
            self._waiting.popleft().set(None)
        else:
            self._held = False


def _guarded(callback: Callable[..., object], *arguments: int) -> None:
    try:
        callback(*arguments)
    except Exception:
        logger.exception("a handler failed")


def _complain(future: Future[Any]) -> None:
    try:
        future.result()
    except Exception:
        logger.exception("a background step failed")
