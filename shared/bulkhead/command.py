"""The one place that starts programs from a service: CNI plugins, runtimes and shims, which end, NRI plugins, filters.

Other long-lived children are the supervisor's (bulkhead.supervisor) and the shim's own (sandbox_svc.shim.reaper).
"""

import contextlib
import fcntl
import logging
import os
import select
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from bulkhead.errors import DeadlineExceeded, NotFound, ResourceExhausted

logger = logging.getLogger(__name__)

#: Seconds from SIGKILL to the end of a process that is not stuck in the kernel.
_DEATH = 5.0
#: Bytes that a program may write unless its caller says otherwise: no plugin's output fills our memory.
_OUTPUT = 16 << 20
_PIECE = 1 << 16


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
    limit: int = _OUTPUT,
) -> Result:
    """Run a program to its end in a process group of its own and return its output.

    The whole group is killed after `timeout` seconds (DeadlineExceeded) or when it has written more than `limit`
    bytes (ResourceExhausted); a program that is not there is NotFound. A non-zero exit status is the caller's to judge.
    """
    deadline = time.monotonic() + timeout
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
        stdout, stderr = _converse(child, input, deadline, limit)
        _await_exit(child, deadline)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        end(child)
        raise DeadlineExceeded(f"{args[0]} did not finish within {timeout:g} s and was killed") from error
    except ResourceExhausted as error:
        end(child)
        raise ResourceExhausted(f"{args[0]} wrote more than {limit} bytes and was killed") from error
    except BaseException:
        end(child)
        raise
    return Result(tuple(args), child.returncode, stdout, stderr)


def _converse(child: subprocess.Popen[bytes], input: bytes, deadline: float, limit: int) -> tuple[bytes, bytes]:
    """Write the input and read both outputs until they end; TimeoutError, ResourceExhausted past their bounds."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    found = {child.stdout: bytearray(), child.stderr: bytearray()}
    rest = memoryview(input)
    with selectors.DefaultSelector() as waiting:
        for stream in found:
            waiting.register(stream, selectors.EVENT_READ)
        os.set_blocking(child.stdin.fileno(), False)
        waiting.register(child.stdin, selectors.EVENT_WRITE)
        while waiting.get_map():
            left = deadline - time.monotonic()
            ready = waiting.select(left) if left > 0 else []
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is child.stdin:
                    rest = _write(child.stdin, rest)
                    if not rest:
                        waiting.unregister(child.stdin)
                        child.stdin.close()
                elif not _read(found, key.fileobj):  # type: ignore[arg-type] # only the two outputs are left
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr] # registered as a file above
                elif sum(map(len, found.values())) > limit:
                    raise ResourceExhausted
    return bytes(found[child.stdout]), bytes(found[child.stderr])


def _await_exit(child: subprocess.Popen[bytes], deadline: float) -> None:
    """Return at once when a program that has closed its outputs ends; Popen's wait with a time limit looks in naps."""
    pidfd = os.pidfd_open(child.pid)
    try:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        os.close(pidfd)
    child.wait(0)


def _write(stream: IO[bytes], rest: memoryview) -> memoryview:
    """Write what the pipe takes and return what is left: nothing once the program has closed its end."""
    try:
        return rest[os.write(stream.fileno(), rest[:_PIECE]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _read(found: dict[IO[bytes], bytearray], stream: IO[bytes]) -> bool:
    """Read a piece of one output; False at its end."""
    piece = os.read(stream.fileno(), _PIECE)
    found[stream] += piece
    return bool(piece)


def start(args: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a program that goes on, in a process group of its own and without standard streams.

    It is the caller's to end (`end`). NotFound if it cannot be started.
    """
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            args, stdin=null, stdout=null, stderr=null, env=dict(env), pass_fds=pass_fds, process_group=0
        )
    except OSError as error:
        raise NotFound(f"{args[0]}: {error.strerror}") from error


class Filter:
    """A program between two descriptors, in a process group of its own: it reads one and writes the other.

    `payload` is what it finds at descriptor 3; without one that descriptor is closed. NotFound if it cannot be started.
    """

    def __init__(
        self, args: Sequence[str], *, source: int, sink: int, env: Mapping[str, str], payload: bytes | None = None
    ) -> None:
        self._args = tuple(args)
        path = shutil.which(args[0], path=env.get("PATH", os.defpath))
        if path is None:
            raise NotFound(f"{args[0]}: no such program")
        self._stderr = bytearray()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        given = [source, sink, writer]
        try:
            if payload is not None:
                given.append(_memory(payload))
            moves = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(_above(given))]
            self._pid = os.posix_spawn(
                path, self._args, dict(env), file_actions=moves, setpgroup=0, setsigmask=(), setsigdef=(signal.SIGPIPE,)
            )
        except OSError as error:
            os.close(reader)
            raise NotFound(f"{args[0]}: {error.strerror}") from error
        finally:
            for fd in given[2:]:
                os.close(fd)
        self._status: int | None = None
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(self._pid)
            self._listener = threading.Thread(target=self._listen, args=(reader,), name="stderr", daemon=True)
            self._listener.start()
        except BaseException:  # no descriptor or thread to be had: nobody would wait for the program
            os.close(reader)
            if self._pidfd >= 0:
                os.close(self._pidfd)
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise

    def wait(self, timeout: float) -> Result:
        """Return how it ended; DeadlineExceeded, and the group killed, if it has not within `timeout` seconds."""
        if not self._ended(timeout):
            self.end()
            raise DeadlineExceeded(f"{self._args[0]} did not end within {timeout:g} s of its output and was killed")
        self._listener.join(timeout=_DEATH)
        assert self._status is not None
        return Result(self._args, os.waitstatus_to_exitcode(self._status), b"", bytes(self._stderr))

    def end(self) -> None:
        """Kill the group, if it has not ended, and forget the program."""
        if self._status is None and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            self._ended(_DEATH)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self, timeout: float) -> bool:
        if self._status is None:
            waiting = select.poll()
            waiting.register(self._pidfd, select.POLLIN)
            if not waiting.poll(max(timeout, 0.0) * 1000):
                return False
            # What it leaves behind would hold the pipes; before it is reaped its number is nobody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            self._status = os.waitpid(self._pid, 0)[1]
        return True

    def _listen(self, reader: int) -> None:
        """Keep the end of what it says on standard error."""
        with os.fdopen(reader, "rb", buffering=0) as stream:
            while piece := stream.read(_PIECE):
                self._stderr += piece
                del self._stderr[:-_PIECE]


def _memory(data: bytes) -> int:
    """Return a memory file that holds the data and is read from its beginning."""
    fd = os.memfd_create("payload", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _above(fds: list[int]) -> list[int]:
    """Move our own descriptors, those from the third on, above the numbers that the program is to have; return all."""
    for position in range(2, len(fds)):
        moved = fcntl.fcntl(fds[position], fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(fds[position])
        fds[position] = moved
    return fds


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a program's group; whoever left the group and still holds the pipes is not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_DEATH)
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):  # input that was not taken cannot be flushed
                stream.close()
