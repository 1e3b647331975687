"""Control groups: where a pod's and a container's are, what runs in them, and how they end.

A group is named by the runtime specification's linux.cgroupsPath, in either of its two styles: a path below the root
of the hierarchies ("/kubepods/burstable/podX/id", cgroupfs driver), or `slice:prefix:name` (systemd driver), which
stands for the scope `prefix-name.scope` in the nested slices that the dashes of the slice's name spell.

On version 2 there is one hierarchy; on version 1 and on hybrid hosts (version 1 controllers beside a version 2 tree
without any) each controller has its own, and a group is a directory in every one of them.
"""

import contextlib
import errno
import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from bulkhead.errors import InvalidArgument

ROOT = Path("/sys/fs/cgroup")


@functools.cache
def mode(root: Path = ROOT) -> str:
    """Return "v2", or "hybrid" (v1 controllers with a v2 tree beside them), or "v1"."""
    if (root / "cgroup.controllers").exists():
        return "v2"
    return "hybrid" if (root / "unified" / "cgroup.controllers").exists() else "v1"


def hierarchies(root: Path = ROOT) -> list[Path]:
    """Return the root of each hierarchy: one for v2, one a controller directory for v1."""
    if mode(root) == "v2":
        return [root]
    return [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.is_symlink()]


def hierarchy(controller: str, root: Path = ROOT) -> Path:
    """Return the root of the hierarchy a controller is in, whether the kernel has that controller or not."""
    return root if mode(root) == "v2" else root / controller


def expand_slice(name: str) -> str:
    """Return the path of a slice: "a-b.slice" is "/a.slice/a-b.slice", "-.slice" is "/" (systemd.slice(5))."""
    if name == "-.slice":
        return "/"
    words = name.removesuffix(".slice").split("-")
    if not name.endswith(".slice") or "/" in name or not all(words):
        raise InvalidArgument(f"cgroup parent {name!r}: not the name of a slice")
    return "/" + "/".join("-".join(words[: count + 1]) + ".slice" for count in range(len(words)))


def relative(cgroups_path: str) -> str:
    """Return a group below a hierarchy's root, without a leading slash; "" is the root itself.

    ".." is refused: it would lead out of the hierarchy.
    """
    if cgroups_path.count(":") == 2 and "/" not in cgroups_path:
        slice_name, prefix, name = cgroups_path.split(":")
        leaf = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        return f"{expand_slice(slice_name or 'system.slice')}/{leaf}".strip("/")
    parts = [part for part in cgroups_path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"cgroup path {cgroups_path!r}: must not contain '..'")
    return "/".join(parts)


def limited(cgroups_path: str, root: Path = ROOT) -> str:
    """Return the group below a hierarchy's root that has a container's limits, as relative() does.

    On version 2 crun puts them, and the processes, into a group `container` of a scope: the scope's own are systemd's.
    """
    below = relative(cgroups_path)
    inner = f"{below}/container"
    return inner if below.endswith(".scope") and mode(root) == "v2" and (root / inner).is_dir() else below


def parent_path(parent: str, *, systemd: bool) -> str:
    """Return the group that a CRI cgroup_parent names, as a path; "" stays "" (the runtime's own default).

    With the systemd driver the kubelet sends the bare name of a slice, or the slice's path, which ends in it.
    """
    if not parent:
        return ""
    return expand_slice(os.path.basename(parent.rstrip("/"))) if systemd else f"/{relative(parent)}"


def directories(cgroups_path: str, root: Path = ROOT) -> list[Path]:
    """Return the existing directories of a group, one a hierarchy; none for the root group."""
    below = relative(cgroups_path)
    return [path for top in hierarchies(root) if (path := top / below).is_dir()] if below else []


def pids(directory: Path) -> set[int]:
    """Return the processes in a group's directory and below it; those of foreign pid namespaces are left out."""
    found: set[int] = set()
    for path in _tree(directory):
        with contextlib.suppress(OSError):
            found.update(map(int, (path / "cgroup.procs").read_text().split()))
    return found - {0}


def processes(cgroups_path: str, root: Path = ROOT) -> set[int]:
    """Return the processes in a group and below it, in whichever hierarchy; zombies are left out."""
    return {pid for directory in directories(cgroups_path, root) for pid in pids(directory) if _running(pid)}


def create(cgroups_path: str, root: Path = ROOT) -> None:
    """Make a group in every hierarchy, with its parents; what exists is left as it is.

    On version 1 a new cpuset takes its processors and memory nodes from its parent, without which nothing could
    enter it. On version 2 the parents hand down every controller they have.
    """
    for top in hierarchies(root):
        directory = top
        for part in relative(cgroups_path).split("/"):
            if mode(root) == "v2":
                _hand_down(directory)
            directory /= part
            directory.mkdir(mode=0o755, exist_ok=True)
            if mode(root) != "v2":
                _inherit_cpuset(directory)


def _hand_down(directory: Path) -> None:
    """Enable for a group's children what it has itself; a group with processes in it refuses, and may."""
    with contextlib.suppress(OSError):
        names = (directory / "cgroup.controllers").read_text().split()
        (directory / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))


def _inherit_cpuset(directory: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        with contextlib.suppress(FileNotFoundError):
            if not (directory / name).read_text().strip():
                (directory / name).write_text((directory.parent / name).read_text())


def kill(cgroups_path: str, timeout: float = 10.0, root: Path = ROOT) -> bool:
    """Kill everything in a group and wait until it is empty; False if something is left after timeout seconds.

    Version 2 does it in one write (cgroup.kill, Linux 5.14). Elsewhere the group is frozen, every process signalled,
    and thawed, again and again until none is left: frozen processes cannot fork their way out.
    """
    deadline = time.monotonic() + timeout
    while processes(cgroups_path, root):
        if time.monotonic() > deadline:
            return False
        if not _kill_at_once(cgroups_path, root):
            with _frozen(cgroups_path, root):
                _kill_each(processes(cgroups_path, root))
        time.sleep(0.002)
    return True


def _kill_at_once(cgroups_path: str, root: Path) -> bool:
    if mode(root) != "v2":
        return False
    with contextlib.suppress(FileNotFoundError):
        file = root / relative(cgroups_path) / "cgroup.kill"
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
        return True
    return False


def _kill_each(members: set[int]) -> None:
    for pid in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def _frozen(cgroups_path: str, root: Path) -> Iterator[None]:
    """Hold a group's processes still where there is a freezer; those killed meanwhile die when thawed."""
    directory = hierarchy("freezer", root) / relative(cgroups_path)
    file, freeze, thaw = directory / "freezer.state", "FROZEN", "THAWED"
    if mode(root) == "v2":
        file, freeze, thaw = directory / "cgroup.freeze", "1", "0"
    present = file.exists()
    if present:
        _attempt(file, freeze)
    try:
        yield
    finally:
        if present:
            _attempt(file, thaw)


def _attempt(file: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        file.write_text(text)


def remove(cgroups_path: str, root: Path = ROOT, timeout: float = 2.0) -> None:
    """Remove a group in every hierarchy, children first; one that is gone already is fine.

    A group stays busy for a moment after its last process died; OSError (EBUSY) names it if that lasts.
    """
    deadline = time.monotonic() + timeout
    for directory in directories(cgroups_path, root):
        for path in sorted(_tree(directory), key=lambda p: len(p.parts), reverse=True):
            _remove_directory(path, deadline)


def _remove_directory(path: Path, deadline: float) -> None:
    while True:
        try:
            return path.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def oom_kills(cgroups_path: str, root: Path = ROOT) -> int:
    """Return how often the kernel killed for memory in a group, 0 if it is gone or does not say."""
    below = relative(cgroups_path)
    if not below:
        return 0
    name = "memory.events" if mode(root) == "v2" else "memory.oom_control"
    with contextlib.suppress(OSError):
        for line in (hierarchy("memory", root) / below / name).read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
    return 0


def _running(pid: int) -> bool:
    """Tell a process from a zombie, which stays in its group until it is reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _tree(directory: Path) -> Iterator[Path]:
    for path, _, _ in os.walk(directory):
        yield Path(path)
