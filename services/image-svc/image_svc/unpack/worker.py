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

from bulkhead.errors import BulkheadError, Internal, ResourceExhausted, from_code
from image_svc.unpack import confine

#: Bytes of an answer; a pipe holds as many (pipe(7)), so the worker never waits for the helper to read.
ANSWER_LIMIT = 60_000


@dataclass(frozen=True)
class Step:
    """Work for a worker: `work()` returns what it has to say as JSON values, or raises a BulkheadError."""

    confinement: confine.Confinement
    work: Callable[[], dict[str, Any]]
    #: Seconds until it is killed.
    seconds: float


class Worker:
    """A running step."""

    def __init__(self, step: Step) -> None:
        """Fork. The helper has one thread, so the child may go on in Python."""
        here, there = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _run(step, there, parent)
        os.close(there)
        os.set_blocking(here, False)
        self._answer = here
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
        if os.WIFSIGNALED(status):
            raise _death(os.WTERMSIG(status))
        return _parse(raw)


def _death(number: int) -> BulkheadError:
    if number == signal.SIGSYS:
        return Internal("unpack worker was killed by its system call filter")
    if number == signal.SIGXCPU:
        return ResourceExhausted("unpack worker used up its processor time")
    return Internal(f"unpack worker was killed by {signal.Signals(number).name}")


def _parse(raw: bytes) -> dict[str, Any]:
    """Read an answer, trusting nothing in it: the worker has read the layer."""
    try:
        answer = json.loads(raw)
        if (failure := answer.get("error")) is not None:
            raise from_code(int(failure["code"]), str(failure["message"])[:2000])
        return dict(answer["ok"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Internal("unpack worker gave no answer") from error


def _run(step: Step, answer: int, parent: int) -> None:
    """Be the child: never returns."""
    try:
        gc.disable()  # what a worker drops holds no cycles
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        confinement = step.confinement
        _answer(answer, _attempt(step.work, confinement, answer, parent))
    finally:
        os._exit(0)


def _attempt(
    work: Callable[[], dict[str, Any]], confinement: confine.Confinement, answer: int, parent: int
) -> dict[str, Any]:
    try:
        confine.enter(confinement, answer, parent)
        return {"ok": work()}
    except BulkheadError as error:
        return {"error": {"code": error.code, "message": str(error)}}
    except MemoryError:
        size = confinement.memory // (1024 * 1024)
        return {"error": {"code": ResourceExhausted.code, "message": f"unpacking takes more than {size} MiB of memory"}}
    except Exception as error:
        return {"error": {"code": Internal.code, "message": f"{type(error).__name__}: {error}"}}


def _answer(fd: int, answer: dict[str, Any]) -> None:
    os.write(fd, json.dumps(answer).encode()[:ANSWER_LIMIT])
