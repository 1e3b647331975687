"""Work beside and behind the answers: threads that keep the correlation id and never lose an exception."""

import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ParamSpec, TypeVar

from bulkhead import metrics

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Background:
    """Two pools: operations that outlive their caller, and the parts those wait for, so that none waits for itself."""

    def __init__(self, operations: int = 256, parts: int = 512) -> None:
        self._operations = ThreadPoolExecutor(operations, thread_name_prefix="operation")
        self._parts = ThreadPoolExecutor(parts, thread_name_prefix="part")
        self._stopping = threading.Event()
        self._tidying: set[Future[None]] = set()

    def operation(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run work that nobody may cancel; its exception is the future's."""
        context = contextvars.copy_context()
        return self._operations.submit(lambda: context.run(work, *args, **kwargs))

    def part(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run a part of an operation that waits for it."""
        context = contextvars.copy_context()
        return self._parts.submit(lambda: context.run(work, *args, **kwargs))

    def behind(self, what: str, work: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run work that nobody waits for; a failure is logged and counted."""
        self._submit(what, work, *args, **kwargs)

    def tidy(self, what: str, work: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run work that nobody waits for but the service's stop (`tidied`): what an answer said is done, and exits."""
        if (future := self._submit(what, work, *args, **kwargs)) is not None:
            self._tidying.add(future)
            future.add_done_callback(self._tidying.discard)

    def tidied(self, seconds: float) -> None:
        """Wait for what was begun by `tidy`, for so long at most."""
        wait(list(self._tidying), seconds)

    def _submit(self, what: str, work: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> "Future[None] | None":
        def guarded() -> None:
            try:
                work(*args, **kwargs)
            except Exception as error:
                metrics.ERRORS.labels(what).inc()
                logger.warning("%s failed: %s", what, error, exc_info=not hasattr(error, "code"))

        if self._stopping.is_set():
            return None
        return self._operations.submit(contextvars.copy_context().run, guarded)

    @property
    def stopping(self) -> threading.Event:
        """Set when the service is being stopped: long waits end then."""
        return self._stopping

    def stop(self) -> None:
        """Start nothing new; what runs is not waited for, since the ledger brings it to its end next time."""
        self._stopping.set()
        self._operations.shutdown(wait=False, cancel_futures=True)
        self._parts.shutdown(wait=False, cancel_futures=True)
