"""The one place that starts short-lived programs from a service (CNI plugins, runtimes, shims).

Long-lived children are the supervisor's (bulkhead.supervisor) and the shim's own (sandbox_svc.shim.reaper).
"""

import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bulkhead.errors import DeadlineExceeded, NotFound

logger = logging.getLogger(__name__)

#: Seconds from SIGKILL to the end of a process that is not stuck in the kernel.
_DEATH = 5.0


@dataclass(frozen=True)
class Result:
    """How a program ended and what it said."""

    args: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """The last 1000 characters of standard error, or of standard output, for an error message."""
        text = (self.stderr or self.stdout).decode(errors="replace").strip()
        return text[-1000:] or f"exit status {self.returncode} and no output"


def run(
    args: Sequence[str],
    *,
    timeout: float,
    input: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
) -> Result:
    """Run a program to its end in a process group of its own and return its output.

    The whole group is killed after `timeout` seconds (DeadlineExceeded); a program that is not there is NotFound.
    A non-zero exit status is the caller's to judge.
    """
    try:
        child = subprocess.Popen(
            args,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            pass_fds=pass_fds,
            process_group=0,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise NotFound(f"{args[0]}: {error.strerror}") from error
    try:
        stdout, stderr = child.communicate(input, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        _end(child)
        raise DeadlineExceeded(f"{args[0]} did not finish within {timeout:g} s and was killed") from error
    return Result(tuple(args), child.returncode, stdout, stderr)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a program's group; whoever left the group and still holds the pipes is not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_DEATH)
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):  # input that was not taken cannot be flushed
                stream.close()
