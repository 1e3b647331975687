"""One running program of the stack: started through the launcher, watched by pidfd, its output read from a pipe."""

import os
import signal
import subprocess
import sys
import time
from collections import deque

from bulkhead.launch.plan import Plan

#: A program that ran this many seconds has started well: its next death counts as the first.
STEADY = 10.0
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
    """A started program. `detached` puts it into a session of its own, with its output in a file."""

    def __init__(self, name: str, plan: Plan, log: int | None = None) -> None:
        self.name, self.began = name, time.monotonic()
        self.output: int | None = None
        self.last_lines: deque[str] = deque(maxlen=5)
        write = log
        if log is None:
            self.output, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.output, False)
        # Isolated mode: neither the working directory nor the environment decides what is imported as root.
        command = [sys.executable, "-I", "-m", "bulkhead.launch", plan.to_json()]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                pass_fds=(plan.listen_fd,) if plan.listen_fd >= 0 else (),
                start_new_session=log is not None,
                process_group=0 if log is None else None,
            )
        finally:
            if log is None and write is not None:
                os.close(write)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def reap(self) -> str:
        """Collect the exit and return it in words; the process must have ended."""
        status = self._process.wait()
        os.close(self.pidfd)
        self._close_output()
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    def end_output(self) -> None:
        """Close the pipe after its last byte was read."""
        self._close_output()

    def signal(self, number: int) -> None:
        """Send a signal to the program, if it has not ended."""
        self._process.send_signal(number)

    def kill_group(self) -> None:
        """Kill the program and what it started in its process group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self._process.kill()

    @property
    def lived(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def _close_output(self) -> None:
        if self.output is not None:
            os.close(self.output)
            self.output = None
