"""A container's cgroup, version 1, 2 or both: who is in it, killing it, and whether it ran out of memory."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

ROOT = "/sys/fs/cgroup"


class Cgroup:
    """Directories by controller; the key "" is the unified hierarchy.

    Only a cgroup that is the container's own is killed: never one that this process is in, at or below it.
    """

    __slots__ = ("_ours", "paths")

    def __init__(self, paths: dict[str, str], ours: dict[str, str] | None = None) -> None:
        self.paths = paths
        self._ours = set(ours.values()) if ours else set()

    @classmethod
    def of(cls, pid: int, *, proc: str = "/proc", root: str = ROOT) -> "Cgroup":
        """Find the cgroup of a process as it is now; empty if the process is gone."""
        try:
            with open(f"{proc}/{pid}/cgroup") as file, open(f"{proc}/self/cgroup") as own:
                return cls(parse(file.read(), root), parse(own.read(), root))
        except OSError:
            return cls({})

    @property
    def unified(self) -> bool:
        """Whether controllers are read from the unified hierarchy."""
        return "memory" not in self.paths and "" in self.paths

    def directory(self, controller: str) -> str:
        """Return the directory with a controller's files, or an empty string."""
        return self.paths.get("" if self.unified else controller, "")

    def pids(self) -> list[int]:
        """Return the processes in the cgroup and below."""
        found: set[int] = set()
        for directory, _, _ in os.walk(self._tree()):
            found.update(int(line) for line in lines(f"{directory}/cgroup.procs"))
        return sorted(found)

    def signal(self, number: int) -> None:
        """Send a signal to every process; SIGKILL also reaches those that are made meanwhile."""
        if number == signal.SIGKILL and self.unified and self._is_own(self.paths[""]):
            try:
                _write(f"{self.paths['']}/cgroup.kill", "1")
            except OSError:
                pass  # before Linux 5.14
            else:
                return
        for _ in range(10 if number == signal.SIGKILL else 1):
            pids = [pid for pid in self.pids() if pid != os.getpid()]
            if not pids:
                return
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def oom_kills(self) -> int | None:
        """Return how many processes the kernel has killed here for want of memory; None if the group is gone."""
        name = "memory.events" if self.unified else "memory.oom_control"
        return dict(key_values(f"{self.directory('memory')}/{name}")).get("oom_kill")

    def _tree(self) -> str:
        """The hierarchy that lists the processes best: one that the container cannot have moved them out of."""
        for controller in ("", "memory", "pids", "freezer", "name=systemd", "devices"):
            path = self.paths.get(controller, "")
            if path and self._is_own(path) and os.path.isfile(f"{path}/cgroup.procs"):
                return path
        return "/nonexistent"

    def _is_own(self, path: str) -> bool:
        """Whether a directory holds the container and nothing of ours."""
        shared = any(ours == path or ours.startswith(path + "/") for ours in self._ours)
        return not shared and not os.path.ismount(path)


def parse(text: str, root: str = ROOT) -> dict[str, str]:
    """Return controller -> directory from the text of /proc/<pid>/cgroup."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            hybrid = f"{root}/unified"
            paths[""] = os.path.normpath((hybrid if os.path.isdir(hybrid) else root) + path)
            continue
        for controller in controllers.split(","):
            mounted = controllers if os.path.isdir(f"{root}/{controllers}") else controller
            paths[controller] = os.path.normpath(f"{root}/{mounted.removeprefix('name=')}{path}")
    return paths


def join(path: str, pid: int, *, root: str = ROOT) -> None:
    """Move a process into a cgroup named as containerd's ShimCgroup, which is made where it is missing."""
    bases = [root] if os.path.exists(f"{root}/cgroup.controllers") else _hierarchies(root)
    for base in bases:
        directory = f"{base}/{path.strip('/')}"
        os.makedirs(directory, exist_ok=True)
        if os.path.exists(f"{directory}/cpuset.cpus"):
            _inherit_cpuset(directory, base)
        _write(f"{directory}/cgroup.procs", str(pid))


def key_values(path: str) -> Iterator[tuple[str, int]]:
    """Yield the `name number` lines of a cgroup file; nothing if it is missing."""
    for line in lines(path):
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            yield name, int(value)


def number(path: str) -> int:
    """Return the number in a file: 0 if it is missing, 2**64 - 1 for "max"."""
    for line in lines(path):
        return int(line) if line.isdigit() else 2**64 - 1 if line == "max" else 0
    return 0


def lines(path: str) -> list[str]:
    """Return the lines of a file, none if it is missing."""
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError:
        return []


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _hierarchies(root: str) -> list[str]:
    return [entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]


def _inherit_cpuset(directory: str, base: str) -> None:
    """Give a new version 1 cpuset the processors and memory nodes of its parents, without which nothing can join it."""
    path = base
    for part in os.path.relpath(directory, base).split("/"):
        parent, path = path, f"{path}/{part}"
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not "".join(lines(f"{path}/{name}")).strip():
                _write(f"{path}/{name}", "".join(lines(f"{parent}/{name}")))
