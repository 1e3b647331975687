"""Threads for calls, started beside whoever hands the calls over."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent import futures
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

from bulkhead.courtesy import Courtesy

logger = logging.getLogger(__name__)

#: Seconds until a thread that could not be started is tried again.
_AGAIN = 0.1

P = ParamSpec("P")
T = TypeVar("T")


class CallPool(futures.ThreadPoolExecutor):
    """A ThreadPoolExecutor whose submit() starts no thread.

    Starting one waits until it runs. grpc submits from the single thread that takes every call, so that twenty long
    calls at once, on a machine with other work, would hold up all others for a tenth of a second.
    """

    def __init__(self, limit: int, name: str, courtesy: Courtesy | None = None) -> None:
        """`limit` threads at most, on demand, their names beginning with `name`; `courtesy` is told of the calls."""
        super().__init__(limit, thread_name_prefix=name)
        self._courtesy = courtesy

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Have a call made in one of the threads."""
        courtesy = self._courtesy
        if courtesy is None:
            return super().submit(fn, *args, **kwargs)
        token = courtesy.begin()
        try:
            call = super().submit(fn, *args, **kwargs)
        except BaseException:
            courtesy.end(token)
            raise
        call.add_done_callback(lambda _: courtesy.end(token))
        return call

    def _adjust_thread_count(self) -> None:
        # What submit() calls for each piece of work in every CPython so far; held by a test.
        _starter.want(super()._adjust_thread_count)


class _Starter:
    """Starts the threads of all pools in one of its own."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._runs = False

    def want(self, start: Callable[[], None]) -> None:
        """Have a pool see whether it needs one more thread."""
        with self._lock:
            if not self._runs:
                threading.Thread(target=self._run, name="starter", daemon=True).start()
                self._runs = True
        self._wanted.put(start)

    def _run(self) -> None:
        while True:
            start = self._wanted.get()
            while True:
                try:
                    start()
                    break
                except RuntimeError as error:  # as many threads as there may be
                    logger.warning("a call waits for a thread: %s", error)
                    time.sleep(_AGAIN)


_starter = _Starter()
