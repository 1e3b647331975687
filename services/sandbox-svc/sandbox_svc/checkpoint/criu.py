"""Whether checkpoints can be made here: the CRIU program, and an OCI runtime that drives it."""

import functools
import os
import re
import shutil

from bulkhead import command
from bulkhead.errors import BulkheadError, FailedPrecondition
from sandbox_svc.runtimes import Resolved

#: The first that checkpoints a container of a pod, whose namespaces are other processes' too; containerd wants it, too.
OLDEST = (3, 16)
#: Seconds for a program to say its version.
_TIMEOUT = 10.0


def require(runtime: Resolved, *, enabled: bool) -> None:
    """Raise FailedPrecondition, naming what was looked for, where a runtime handler cannot make checkpoints.

    A foreign shim brings its own means, or refuses by itself.
    """
    if not enabled:
        raise FailedPrecondition("checkpoints are turned off (enable_criu = false)")
    if not runtime.ours:
        return
    path = shutil.which("criu")
    if path is None:
        raise FailedPrecondition(f"checkpoints need the program criu, which is not in {os.environ.get('PATH', '')}")
    found = _version(path, os.stat(path).st_mtime_ns)
    if found < OLDEST:
        raise FailedPrecondition(f"{path} has version {_dotted(found)}, checkpoints need {_dotted(OLDEST)} or later")
    if runtime.facts.name == "crun" and not _crun_has_criu(runtime.binary, os.stat(runtime.binary).st_mtime_ns):
        raise FailedPrecondition(
            f"{runtime.binary} was built without CRIU (`crun --version` has no +CRIU); "
            "a handler with BinaryName = runc makes checkpoints"
        )


def trouble() -> str:
    """Return what CRIU itself finds missing on this machine, "" where `criu check` is content."""
    try:
        done = command.run(["criu", "check"], timeout=_TIMEOUT)
    except BulkheadError as error:
        return str(error)
    return "" if done.returncode == 0 else done.complaint.partition("\n")[0]


@functools.lru_cache(maxsize=4)
def _version(path: str, _changed: int) -> tuple[int, ...]:
    try:
        said = command.run([path, "--version"], timeout=_TIMEOUT).stdout.decode(errors="replace")
    except BulkheadError as error:
        raise FailedPrecondition(f"checkpoints need CRIU: {error}") from error
    match = re.search(r"Version: (\d+)\.(\d+)", said)
    if match is None:
        raise FailedPrecondition(f"{path} --version says {said[:100]!r}, expected `Version: 3.16` or later")
    return int(match[1]), int(match[2])


@functools.lru_cache(maxsize=4)
def _crun_has_criu(path: str, _changed: int) -> bool:
    try:
        return b"+CRIU" in command.run([path, "--version"], timeout=_TIMEOUT).stdout
    except BulkheadError:
        return False


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
