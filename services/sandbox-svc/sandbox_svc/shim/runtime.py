"""The OCI runtime's command line: runc, crun, and whatever has the same."""

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from bulkhead.errors import BulkheadError, DeadlineExceeded, NotFound
from bulkhead.proto.containerd.runc_options_pb2 import Options
from sandbox_svc.shim import notes, sealed, view
from sandbox_svc.shim.loop import Future, Loop
from sandbox_svc.shim.reaper import Exit, Reaper

#: Where stock shims keep the runtime's state; the namespace is appended.
DEFAULT_ROOT = "/run/containerd/runc"
#: Where runtimes are looked for, if nobody says.
PATH = os.environ.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
#: Seconds that one call of the runtime may take unless the caller says less.
DEADLINE = 120.0
#: Seconds that a killed one may take to be gone.
KILL_WAIT = 5.0

_numbers = itertools.count()


class RuntimeFailed(BulkheadError):
    """The OCI runtime refused; the message is its own. Stock shims answer such errors with this code."""

    code, name = 2, "UNKNOWN"


class Runtime:
    """One runtime binary with its options, as one container uses it."""

    __slots__ = ("_cured", "_loop", "_null", "_reaper", "binary", "options", "root")

    def __init__(self, loop: Loop, reaper: Reaper, null: int, options: Options, namespace: str) -> None:
        self._loop, self._reaper, self._null = loop, reaper, null
        self.binary = find_binary(options.binary_name)
        self.root = os.path.join(options.root or DEFAULT_ROOT, namespace)
        self.options = options
        self._cured = view.needed(self.binary)

    async def create(
        self, ident: str, bundle: str, pid_file: str, stdio: Sequence[int], console: str, deadline: float
    ) -> None:
        """Make the container and leave its process waiting for `start`."""
        arguments = ["create", "--bundle", bundle, "--pid-file", pid_file]
        if console:
            arguments += ["--console-socket", console]
        if self.options.no_pivot_root:
            arguments.append("--no-pivot")
        if self.options.no_new_keyring:
            arguments.append("--no-new-keyring")
        await self.call([*arguments, ident], bundle, deadline, stdio)

    async def start(self, ident: str, bundle: str, deadline: float) -> None:
        """Let the container's process run."""
        await self.call(["start", ident], bundle, deadline)

    async def exec(
        self,
        ident: str,
        bundle: str,
        process: str,
        pid_file: str,
        stdio: Sequence[int],
        console: str,
        deadline: float,
    ) -> None:
        """Start a further process, described by an OCI runtime-spec process in a JSON file."""
        arguments = ["exec", "--process", process, "--pid-file", pid_file, "--detach"]
        if console:
            arguments += ["--console-socket", console, "--tty"]
        await self.call([*arguments, ident], bundle, deadline, stdio)

    async def delete(self, ident: str, bundle: str, deadline: float) -> None:
        """Remove what the runtime made, killing what is left; a container that it does not know is gone."""
        try:
            await self.call(["delete", "--force", ident], bundle, deadline)
        except RuntimeFailed:
            if self.keeps(ident):
                raise

    def keeps(self, ident: str) -> bool:
        """Whether there is something of a container for `delete` to remove."""
        return os.path.isdir(os.path.join(self.root, ident))

    async def call(
        self,
        arguments: Sequence[str],
        bundle: str,
        deadline: float,
        stdio: Sequence[int] | None = None,
        *,
        begun: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """Run `<runtime> <arguments>`; RuntimeFailed carries what it logged, DeadlineExceeded means it was killed.

        `begun` is given what kills it and all it started, at any time.
        """
        log = f"{bundle}/runtime-{next(_numbers)}.log"
        line = [self.binary, "--root", self.root, "--log", log, "--log-format", "json"]
        if self.options.systemd_cgroup:
            line.append("--systemd-cgroup")
        null = self._null
        given = (stdio[0], stdio[1], stdio[2]) if stdio is not None else (null, null, null)
        pid, ended = self._spawn([*line, *arguments], given)
        what = f"{os.path.basename(self.binary)} {arguments[0]}"
        if begun is not None:
            begun(partial(self._kill, pid))
        try:
            end = await self._loop.within(ended, deadline or DEADLINE, what)
            if end.status:
                raise RuntimeFailed(f"OCI runtime {arguments[0]} failed: {complaint(log, end.status)}")
        except DeadlineExceeded:
            self._kill(pid)
            with suppress(DeadlineExceeded):  # a process that hangs in the kernel outlives even that
                await self._loop.within(ended, KILL_WAIT, what)
            raise
        finally:
            notes.remove(log)

    def _kill(self, pid: int) -> None:
        if self._reaper.alive(pid):
            os.killpg(pid, signal.SIGKILL)

    def _spawn(self, line: Sequence[str], stdio: tuple[int, int, int]) -> tuple[int, Future[Exit]]:
        program = sealed.crun.program(self.binary)
        try:
            return self._run(program, line, stdio)
        except OSError:
            if program == self.binary:
                raise
            # Containers run it, too, where their program is /proc/self/exe: root in one may change its mode or hold it
            # open for writing, and nobody can execute it any more.
            sealed.crun.drop()
            return self._run(self.binary, line, stdio)

    def _run(self, program: str, line: Sequence[str], stdio: tuple[int, int, int]) -> tuple[int, Future[Exit]]:
        if not self._cured:
            return self._reaper.spawn(program, line, stdio)
        with view.without_unified():
            return self._reaper.spawn(program, line, stdio)


def find_binary(name: str) -> str:
    """Return the absolute path of a runtime; runc where none is named."""
    path = name if name.startswith("/") and os.access(name, os.X_OK) else shutil.which(name or "runc", path=PATH)
    if path is None:
        raise NotFound(f"OCI runtime {name or 'runc'!r} is not installed")
    return os.path.abspath(path)


def complaint(log: str, status: int) -> str:
    """Return the last error in a runtime's JSON log, or its exit status."""
    try:
        lines = notes.read(log).splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            if entry.get("level") in ("error", "fatal", "panic"):
                return str(entry["msg"])
        except (ValueError, KeyError, AttributeError):
            continue  # a line of something else
    return f"exit status {status} and no error in its log"
