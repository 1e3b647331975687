"""The lookups of the spec builders, answered by the running machine."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox_svc.oci.model import Device

#: What privileged containers are not given of /dev: other mounts, and leftovers of LXC and udev.
_SKIPPED_DIRECTORIES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})
_SKIPPED_FILES = frozenset({"console"})

MAX_READ = 4 << 20

_CGROUP = "/sys/fs/cgroup"


class LinuxHost:
    """The running machine, as `model.Host` wants it."""

    def devices(self) -> tuple[Device, ...]:
        """Return the device nodes below /dev, in order of name."""
        return self.device("/dev")

    def device(self, path: str) -> tuple[Device, ...]:
        """Return the node at path, or those below the directory; OSError (ENODEV) for any other file."""
        if os.path.isdir(path):
            return tuple(_walk(path))
        os.lstat(path)
        found = _device(path)
        if found is None:
            raise OSError(errno.ENODEV, "not a device node", path)
        return (found,)

    def real_path(self, path: str) -> str:
        """Return the path without symlinks."""
        return os.path.realpath(path, strict=True)

    def exists(self, path: str) -> bool:
        """Tell whether there is something at the path."""
        return os.path.exists(path)

    def propagation(self, path: str) -> str:
        """Return how the mount that holds path propagates; one that is both shared and slave counts as shared."""
        optional = _mount_of(path).optional
        if any(field.startswith("shared:") for field in optional):
            return "shared"
        return "slave" if any(field.startswith("master:") for field in optional) else "private"

    def read(self, path: str) -> bytes:
        """Return a file's bytes; OSError (EFBIG) where there are more than 4 MiB."""
        with open(path, "rb") as file:
            data = file.read(MAX_READ + 1)
        if len(data) > MAX_READ:
            raise OSError(errno.EFBIG, f"more than {MAX_READ} bytes", path)
        return data

    def thermal_throttle_paths(self) -> tuple[str, ...]:
        """Return the throttle counters of every processor, through which a container could watch the others."""
        return tuple(str(path) for path in sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")))

    def cgroup_options(self) -> tuple[str, ...]:
        """Return nsdelegate and memory_recursiveprot where the node's cgroup2 has them."""
        found = next((mount for mount in _mounts() if mount.target == _CGROUP and mount.type == "cgroup2"), None)
        options = found.super_options if found else ()
        return tuple(option for option in options if option in ("nsdelegate", "memory_recursiveprot"))

    def apparmor_profile_loaded(self, name: str) -> bool:
        """Tell whether securityfs lists a profile of that name."""
        try:
            lines = Path("/sys/kernel/security/apparmor/profiles").read_text().splitlines()
        except OSError:
            return False
        return any(line.startswith(f"{name} (") for line in lines)


@dataclass(frozen=True)
class _Mount:
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    target: str
    optional: tuple[str, ...]
    type: str
    super_options: tuple[str, ...]


def _mounts() -> Iterator[_Mount]:
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        target = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        yield _Mount(target, tuple(fields[6:]), rest[0], tuple(rest[2].split(",")) if len(rest) > 2 else ())


def _mount_of(path: str) -> _Mount:
    """Return the mount that holds path: the longest target above it, the last of equal ones."""
    best = None
    for mount in _mounts():
        above = mount.target.rstrip("/")
        if (path == above or path.startswith(above + "/")) and (best is None or len(mount.target) >= len(best.target)):
            best = mount
    if best is None:
        raise FileNotFoundError(errno.ENOENT, "no mount holds it", path)
    return best


def device_node(path: str) -> Device:
    """Return the device node or FIFO at path, symlinks not followed; OSError (ENODEV) for any other file."""
    found = os.lstat(path)
    if stat.S_ISFIFO(found.st_mode):
        return Device(path, "p", 0, 0, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
    if (device := _device(path)) is None:
        raise OSError(errno.ENODEV, "not a device node", path)
    return device


def _walk(directory: str) -> Iterator[Device]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda found: found.name):
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _SKIPPED_DIRECTORIES:
                    yield from _walk(entry.path)
            elif entry.name not in _SKIPPED_FILES:
                found = _device(entry.path)
                if found is not None:
                    yield found


def _device(path: str) -> Device | None:
    """Return the node at path (symlinks are not followed), None for anything else or where it has just gone."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        return None
    return Device(
        path=path,
        type="c" if stat.S_ISCHR(found.st_mode) else "b",
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
    )
