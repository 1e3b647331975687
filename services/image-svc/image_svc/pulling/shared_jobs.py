"""Single flight: work that several pulls want is done once, goes on while anybody wants it, and is then let go."""

import contextvars
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar

from bulkhead.courtesy import step_aside
from bulkhead.errors import BulkheadError, Internal, ResourceExhausted
from image_svc import threads
from image_svc.patience import Patience

T = TypeVar("T")


class Job(Generic[T]):
    """Work in a thread of its own, with a patience of its own; subclasses say what it is."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        #: When it was made, by `time.monotonic()`.
        self.began = time.monotonic()
        self.future: Future[T] = Future()
        #: Settled when the job is over and forgotten.
        self.gone: Future[None] = Future()
        self._interest = 0
        self._ended = False

    def run(self) -> T:
        """Do the work; called once, in the job's thread."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of what the job holds; called once, after `run` has ended and nobody wants it any more."""

    @property
    def failed(self) -> bool:
        """Whether it has ended without a result."""
        return self.future.done() and self.future.exception() is not None

    def execute(self) -> None:
        """Run and settle the future."""
        try:
            self.future.set_result(self.run())
        except BulkheadError as error:
            self.future.set_exception(error)
        except BaseException as error:  # the waiting pulls must hear of whatever ended their job
            made = Internal(f"{type(self).__name__} failed: {type(error).__name__}: {error}")
            made.__cause__ = error
            self.future.set_exception(made)


R = TypeVar("R")


class Jobs:
    """The jobs under way, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[Hashable, Job[object]] = {}

    @contextmanager
    def join(self, key: Hashable, make: Callable[[], Job[R]], patience: Patience) -> Iterator[tuple[Job[R], bool]]:
        """Yield the job under that key and whether it was started here; started with `make` if there is none.

        At the end of the block the last one to leave calls off a job that is not done. A job that was called off and
        has not ended yet is waited for, so that two of one key never run at once. One that failed is not joined but
        replaced, though others may not have left it yet.
        """
        job, mine = self._enter(key, make, patience)
        try:
            yield job, mine
        finally:
            self._leave(job)

    def _enter(self, key: Hashable, make: Callable[[], Job[R]], patience: Patience) -> tuple[Job[R], bool]:
        while True:
            with self._lock:
                job: Job[R] | None = self._jobs.get(key)  # type: ignore[assignment] # one kind of job a key
                if job is None or job.failed:
                    job = make()
                    job._interest = 1
                    self._jobs[key] = job  # type: ignore[assignment]
                    break
                if job._interest:
                    job._interest += 1
                    return job, False
            patience.wait(job.gone)
        run = contextvars.copy_context().run
        try:
            threads.start(run, f"job-{key}", self._execute, job)
        except ResourceExhausted as error:
            job.future.set_exception(error)
            job._ended = True
            self._leave(job)
            job.future.result()
        return job, True

    def _execute(self, job: Job[R]) -> None:
        step_aside()
        job.execute()
        with self._lock:
            job._ended = True
            last = job._interest == 0
        if last:
            self._forget(job)

    def _leave(self, job: Job[R]) -> None:
        with self._lock:
            job._interest -= 1
            last = job._interest == 0
            ended = job._ended
        if last:
            job.patience.cancel()
            if ended:
                self._forget(job)

    def _forget(self, job: Job[R]) -> None:
        """Let a job go that has ended and that nobody wants."""
        try:
            job.release()
        finally:
            with self._lock:
                self._jobs = {key: each for key, each in self._jobs.items() if each is not job}
            job.gone.set_result(None)

    def keys(self) -> set[Hashable]:
        """Return the keys of the jobs under way."""
        with self._lock:
            return set(self._jobs)


def all_done(futures: Collection[Future[T]]) -> Future[None]:
    """Return a future that is settled when all of these have succeeded, or with the first failure."""
    result: Future[None] = Future()
    lock = threading.Lock()
    left = len(futures)

    def one(done: Future[T]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if result.done():
                return
            if error := done.exception():
                result.set_exception(error)
            elif not left:
                result.set_result(None)

    for future in futures:
        future.add_done_callback(one)
    if not futures:
        result.set_result(None)
    return result
