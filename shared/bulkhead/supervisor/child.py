"""One running program of the stack: started as a fork, watched by pidfd, its output read from a pipe."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque

from bulkhead.launch.plan import Plan
from bulkhead.supervisor.warm import fork

#: A program that ran this many seconds has started well: its next death counts as the first.
STEADY = 2.0
_DELAYS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)


class Backoff:
    """How long to wait before the next start: 50 ms after a first death, up to 5 s in a crash loop."""

    def __init__(self) -> None:
        self.failures = 0

    def after(self, lived: float) -> float:
        """Return the seconds to wait, given how many seconds the program lived."""
        self.failures = 1 if lived >= STEADY else self.failures + 1
        return _DELAYS[min(self.failures, len(_DELAYS)) - 1]


class Child:
    """A started program and the pipe with its output. `detached` gives it a session of its own and a file instead."""

    def __init__(self, name: str, plan: Plan, detached: int | None = None) -> None:
        self.name, self.began = name, time.monotonic()
        self.output: int | None = None
        self.last_lines: deque[str] = deque(maxlen=5)
        if detached is None:
            self.output, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.output, False)
            try:
                self.pid = fork(plan, write)
            finally:
                os.close(write)
        else:
            self.pid = _execute(plan, detached)
        self.pidfd = os.pidfd_open(self.pid)

    def reap(self) -> str:
        """Collect the exit and return it in words; the process must have ended."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self._close_output()
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with status {code}"

    def end_output(self) -> None:
        """Close the pipe after its last byte was read."""
        self._close_output()

    def signal(self, number: int) -> None:
        """Send a signal to the program, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def kill_group(self) -> None:
        """Kill the program and what it started in its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def lived(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def _close_output(self) -> None:
        if self.output is not None:
            os.close(self.output)
            self.output = None


def _execute(plan: Plan, output: int) -> int:
    """Start the program by exec in a session of its own: it outlives this process and shares nothing with it."""
    # Isolated mode: neither the working directory nor the environment decides what is imported as root.
    command = [sys.executable, "-I", "-m", "bulkhead.launch", plan.to_json()]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    # Waited for by pid, like the forks; Popen would warn that nobody did.
    process.returncode = 0
    return process.pid
