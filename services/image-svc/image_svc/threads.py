"""Threads: a process may have so many, and one that cannot be started is a limit reached and no mistake of ours."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from bulkhead.errors import ResourceExhausted

P = ParamSpec("P")
T = TypeVar("T")


def start(target: Callable[P, object], name: str, *args: P.args, **kwargs: P.kwargs) -> threading.Thread:
    """Start a thread that the process's end does not wait for; ResourceExhausted if there can be no more."""
    thread = threading.Thread(target=target, name=name[:40], args=args, kwargs=kwargs, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise _limit(error) from error
    return thread


class Pool(ThreadPoolExecutor):
    """A pool whose `submit` raises ResourceExhausted if it needs one more thread and there can be none."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a function called in one of the threads."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as error:
            raise _limit(error) from error


def _limit(error: RuntimeError) -> ResourceExhausted:
    return ResourceExhausted(f"{error}: the service has as many threads as it may")
