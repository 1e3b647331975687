"""What of a stack outlives it: the zygote and the shims. Found by their sockets, so that any supervisor can."""

import os
import select
import shutil
import signal
from pathlib import Path

from bulkhead import paths, seqpacket
from bulkhead.config.model import Config
from bulkhead.errors import Unavailable
from bulkhead.sockets import is_live
from bulkhead.supervisor.roster import sockets


def zygote_pid(config: Config) -> int:
    """Return the pid of the zygote that listens, or 0."""
    try:
        sock = seqpacket.connect(str(paths.zygote_socket(config.state)), 2)
    except Unavailable:
        return 0
    with sock:
        return seqpacket.peer(sock)[0]


def live_shims(config: Config) -> list[Path]:
    """Return the socket directories of shims and keepers that still listen."""
    return [
        directory
        for directory in _children(config.state / "s")
        if any(is_live(str(entry)) for entry in _children(directory) if entry.is_socket())
    ]


def end_zygote(pid: int, patience: float = 3.0) -> None:
    """End the zygote, if there is one: SIGTERM, then SIGKILL after `patience` seconds."""
    if not pid:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 2.0)):
            signal.pidfd_send_signal(pidfd, number)
            if select.select([pidfd], [], [], wait)[0]:
                return
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def clear_state(config: Config) -> list[str]:
    """Remove what the stack made below its state directory; return what stays, with the reason.

    Only for a stack without shims. Directories of pods go only when they are empty: what a pod left there is
    evidence for the next start, which undoes it.
    """
    state = config.state
    if mounts := mounts_below(state):
        return [f"{mount} is still mounted" for mount in mounts]
    for path in {path.parent for path in sockets(config).values()} | {state / "config", state / "credentials"}:
        shutil.rmtree(path, ignore_errors=True)
    for directory in _children(state / "s"):
        _remove_dead(directory)
    for current, _, _ in os.walk(state, topdown=False):
        if current != str(state):
            _remove_empty(Path(current))
    kept = [f"{path} is not empty" for path in _children(state) if path.is_dir()]
    if not kept:
        _remove_empty(state)
        _remove_empty(state.parent)
    return kept


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points below a directory."""
    prefix = f"{directory}/"
    with open("/proc/self/mountinfo") as file:
        points = [line.split(" ")[4].replace("\\040", " ") for line in file]
    return sorted(point for point in points if point.startswith(prefix))


def _remove_dead(directory: Path) -> None:
    """Remove a shim's directory that holds nothing but sockets nobody listens at."""
    entries = _children(directory)
    if all(entry.is_socket() for entry in entries):
        shutil.rmtree(directory, ignore_errors=True)


def _remove_empty(directory: Path) -> None:
    """Remove a directory unless something is in it."""
    try:
        directory.rmdir()
    except OSError:
        return


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
