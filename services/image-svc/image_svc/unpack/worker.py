"""One confined process for one step: forked, locked in, run, and its answer read from a pipe once it is dead."""

import contextlib
import gc
import json
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bulkhead.errors import Aborted, BulkheadError, Internal, ResourceExhausted, from_code
from image_svc.unpack import confine
from image_svc.unpack.protocol import DiskFull

#: Bytes of an answer; a pipe holds as many (pipe(7)), so the worker never waits for the helper to read.
ANSWER_LIMIT = 60_000
#: Seconds that a process which has closed its descriptors may take to be gone.
_DYING = 1.0


@dataclass(frozen=True)
class Task:
    """What one process does: `work()` returns what it has to say as JSON values, or raises a BulkheadError."""

    confinement: confine.Confinement
    work: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Step(Task):
    """Work for a worker, and for a second process beside it if there is one, whose answer does not count."""

    #: Seconds until it is killed.
    seconds: float
    beside: Task | None = None
    #: Called in the helper once both have begun: lets go of what only they need.
    begun: Callable[[], None] = lambda: None


class Worker:
    """A running step."""

    def __init__(self, step: Step) -> None:
        """Fork. The helper has one thread, so the child may go on in Python."""
        self._beside = 0
        try:
            if step.beside is not None:
                self._beside, unread = _fork(step.beside)
                os.close(unread)
            self.pid, self._answer = _fork(step)
        except OSError:
            self._collect_beside(0.0)
            raise
        finally:
            step.begun()
        os.set_blocking(self._answer, False)
        self.pidfd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        """Kill it; it must still be collected."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def ended(self, timeout: float) -> bool:
        """Tell whether it ends within so many seconds."""
        return bool(select.select([self.pidfd], [], [], timeout)[0])

    def collect(self) -> dict[str, Any]:
        """Wait for its end and return its answer; its error is raised here, Internal if it left none."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        raw = b""
        with contextlib.suppress(BlockingIOError):  # a worker forked meanwhile still holds the other end
            while len(raw) <= ANSWER_LIMIT and (piece := os.read(self._answer, ANSWER_LIMIT)):
                raw += piece
        os.close(self._answer)
        try:
            if os.WIFSIGNALED(status):
                raise _death(os.WTERMSIG(status))
            answer = _parse(raw)
        except BulkheadError as error:
            # A worker says Aborted when the process beside it has let go of its pipe without a word: it is dying.
            if signal_of_beside := self._collect_beside(_DYING if isinstance(error, Aborted) else 0.0):
                raise _death(signal_of_beside) from error
            raise
        self._collect_beside(0.0)
        return answer

    def _collect_beside(self, patience: float) -> int:
        """Have the second process gone and return the signal it died of by itself, within some seconds; 0 for none."""
        if not self._beside:
            return 0
        pidfd = os.pidfd_open(self._beside)
        ended = bool(select.select([pidfd], [], [], patience)[0])
        os.close(pidfd)
        if not ended:  # it holds pipes and memory only, so it dies at once
            os.kill(self._beside, signal.SIGKILL)
        _, status = os.waitpid(self._beside, 0)
        return os.WTERMSIG(status) if ended and os.WIFSIGNALED(status) else 0


def _fork(task: Task) -> tuple[int, int]:
    """Return the process that does the task and the descriptor that its answer comes from."""
    here, there = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _run(task, there, parent)
    except OSError:
        os.close(here)
        raise
    finally:
        os.close(there)
    return pid, here


def _death(number: int) -> BulkheadError:
    if number == signal.SIGSYS:
        return Internal("unpack worker was killed by its system call filter")
    if number == signal.SIGXCPU:
        return ResourceExhausted("unpack worker used up its processor time")
    if number == signal.SIGKILL:
        return Aborted("unpack worker was killed")
    return Internal(f"unpack worker was killed by {signal.Signals(number).name}")


def _parse(raw: bytes) -> dict[str, Any]:
    """Read an answer, trusting nothing in it: the worker has read the layer."""
    try:
        answer = json.loads(raw)
        if (failure := answer.get("error")) is not None:
            text = str(failure["message"])[:2000]
            raise DiskFull(text) if failure.get("full") is True else from_code(int(failure["code"]), text)
        return dict(answer["ok"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Internal("unpack worker gave no answer") from error


def _run(task: Task, answer: int, parent: int) -> None:
    """Be the child: never returns."""
    try:
        gc.disable()  # what a worker drops holds no cycles
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        confinement = task.confinement
        _answer(answer, _attempt(task.work, confinement, answer, parent))
    finally:
        os._exit(0)


def _attempt(
    work: Callable[[], dict[str, Any]], confinement: confine.Confinement, answer: int, parent: int
) -> dict[str, Any]:
    try:
        confine.enter(confinement, answer, parent)
        return {"ok": work()}
    except BulkheadError as error:
        return {"error": {"code": error.code, "message": str(error), "full": isinstance(error, DiskFull)}}
    except MemoryError:
        size = confinement.memory // (1024 * 1024)
        return {"error": {"code": ResourceExhausted.code, "message": f"unpacking takes more than {size} MiB of memory"}}
    except Exception as error:
        return {"error": {"code": Internal.code, "message": f"{type(error).__name__}: {error}"}}


def _answer(fd: int, answer: dict[str, Any]) -> None:
    os.write(fd, json.dumps(answer).encode()[:ANSWER_LIMIT])
