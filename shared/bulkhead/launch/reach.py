"""Whether a service's user can reach what it is about to run; found out by asking the kernel as that user."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from bulkhead.errors import FailedPrecondition
from bulkhead.launch.users import User

#: What helps where it is the installation that a service's user cannot reach.
INSTALLED = "install Bulkhead where every user can reach it, such as /opt or /usr/lib, or run"


def require(user: User, service: str, files: Sequence[Path], advice: str = INSTALLED) -> None:
    """Raise FailedPrecondition naming the first directory or file that the user may not pass or read."""
    blocked = _as_user(user, files)
    if not blocked:
        return
    path = Path(blocked)
    mode = stat.S_IMODE(path.stat().st_mode)
    what, bit = ("search", "o+x") if path.is_dir() else ("read", "o+r")
    raise FailedPrecondition(
        f"{service} runs as user {user.name!r}, who may not {what} {path} (mode {mode:04o}): "
        f"{advice}: chmod {bit} {path}"
    )


def chain(path: Path) -> list[Path]:
    """Return the directories that lead to a path, outermost first, and the path itself."""
    return [*reversed(path.parents), path]


def _as_user(user: User, files: Sequence[Path]) -> str:
    """Return the first path that is closed to the user, or "". Runs in a child, since it gives up root for good."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.write(write, os.fsencode(_first_closed(files)))
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = os.fsdecode(pipe.read())
    os.waitpid(pid, 0)
    return answer


def _first_closed(files: Sequence[Path]) -> str:
    for file in files:
        for path in dict.fromkeys([*chain(file), *chain(Path(os.path.realpath(file)))]):
            wanted = os.X_OK if path.is_dir() else os.R_OK
            if not os.access(path, wanted) and os.access(path.parent, os.X_OK):
                return str(path)
    return ""
