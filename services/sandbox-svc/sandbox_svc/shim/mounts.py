"""The rootfs of a container: the mounts that come with Create, made and undone by the shim."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bulkhead.errors import InvalidArgument
from bulkhead.proto.containerd.types_pb2 import Mount
from sandbox_svc import linux

MS_SYNCHRONOUS, MS_MANDLOCK, MS_DIRSYNC, MS_NODIRATIME = 0x10, 0x40, 0x80, 0x800
MS_STRICTATIME, MS_LAZYTIME = 0x1000000, 0x2000000
PAGE_LIMIT = 4095

#: fstab(5) option -> (flags to clear, flags to set).
FLAGS: dict[str, tuple[int, int]] = {
    "defaults": (0, 0),
    "ro": (0, linux.MS_RDONLY),
    "rw": (linux.MS_RDONLY, 0),
    "nosuid": (0, linux.MS_NOSUID),
    "suid": (linux.MS_NOSUID, 0),
    "nodev": (0, linux.MS_NODEV),
    "dev": (linux.MS_NODEV, 0),
    "noexec": (0, linux.MS_NOEXEC),
    "exec": (linux.MS_NOEXEC, 0),
    "sync": (0, MS_SYNCHRONOUS),
    "async": (MS_SYNCHRONOUS, 0),
    "mand": (0, MS_MANDLOCK),
    "nomand": (MS_MANDLOCK, 0),
    "dirsync": (0, MS_DIRSYNC),
    "noatime": (0, linux.MS_NOATIME),
    "atime": (linux.MS_NOATIME, 0),
    "nodiratime": (0, MS_NODIRATIME),
    "diratime": (MS_NODIRATIME, 0),
    "relatime": (0, linux.MS_RELATIME),
    "norelatime": (linux.MS_RELATIME, 0),
    "strictatime": (0, MS_STRICTATIME),
    "nostrictatime": (MS_STRICTATIME, 0),
    "lazytime": (0, MS_LAZYTIME),
    "remount": (0, linux.MS_REMOUNT),
    "bind": (0, linux.MS_BIND),
    "rbind": (0, linux.MS_BIND | linux.MS_REC),
}
PROPAGATION: dict[str, int] = {
    "private": linux.MS_PRIVATE,
    "rprivate": linux.MS_PRIVATE | linux.MS_REC,
    "shared": linux.MS_SHARED,
    "rshared": linux.MS_SHARED | linux.MS_REC,
    "slave": linux.MS_SLAVE,
    "rslave": linux.MS_SLAVE | linux.MS_REC,
    "unbindable": linux.MS_UNBINDABLE,
    "runbindable": linux.MS_UNBINDABLE | linux.MS_REC,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One call of mount(2), made in `directory` so that relative lower directories fit into its page of options."""

    source: str
    target: str
    kind: str
    flags: int
    data: str
    directory: str = ""

    def describe(self) -> str:
        """Return the step as text."""
        return f"mount -t {self.kind or 'none'} {self.source} {self.target} flags={self.flags:#x} {self.data}".rstrip()

    def execute(self) -> None:
        """Mount."""
        with _inside(self.directory):
            linux.mount(self.source or None, self.target, self.kind or None, self.flags, self.data or None)


def plan(mounts: Iterable[Mount], rootfs: str) -> list[Step]:
    """Return the steps that put these mounts at rootfs."""
    steps: list[Step] = []
    for mount in mounts:
        target = os.path.normpath(os.path.join(rootfs, mount.target.lstrip("/"))) if mount.target else rootfs
        if target != rootfs and not target.startswith(rootfs + "/"):
            raise InvalidArgument(f"rootfs mount target {mount.target!r} leaves the rootfs")
        steps += _steps(mount, target)
    return steps


def execute(steps: Sequence[Step], rootfs: str) -> None:
    """Carry a plan out; what was mounted is unmounted again if a later step fails."""
    try:
        for step in steps:
            step.execute()
    except OSError as error:
        unmount(rootfs)
        raise InvalidArgument(f"rootfs cannot be mounted: {step.describe()}: {error}") from error


def unmount(rootfs: str) -> None:
    """Detach everything that is mounted at or below rootfs; nothing mounted there is success.

    What is below a mount goes with it, so the list of all mounts, some ten for each of the node's pods, is needed only
    where rootfs itself is none.
    """
    if _detached(rootfs):
        return
    for target in reversed(_mounted(rootfs)):
        with contextlib.suppress(OSError):
            linux.umount2(target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)


def _detached(rootfs: str) -> bool:
    """Detach what is mounted at rootfs, one mount above the other; whether there was any."""
    found = False
    while True:
        try:
            linux.umount2(rootfs, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
        except OSError:
            return found
        found = True


def _steps(mount: Mount, target: str) -> list[Step]:
    flags, propagation, rest = 0, 0, list[str]()
    for option in mount.options:
        if option in FLAGS:
            clear, added = FLAGS[option]
            flags = flags & ~clear | added
        elif option in PROPAGATION:
            propagation |= PROPAGATION[option]
        elif option.startswith(("uidmap=", "gidmap=")):
            raise InvalidArgument(f"rootfs mount option {option!r}: mapped mounts are made by the caller")
        elif not option.startswith("X-containerd."):
            rest.append(option)
    kind = "" if mount.type in ("bind", "rbind") else mount.type
    directory, data = _fit(rest) if mount.type == "overlay" else ("", ",".join(rest))
    steps = [Step(mount.source, target, kind, flags, data, directory)]
    if flags & linux.MS_BIND and flags & ~(linux.MS_BIND | linux.MS_REC):
        # The kernel takes a bind mount's other flags only in a second step.
        steps.append(Step(mount.source, target, "", flags | linux.MS_REMOUNT, ""))
    if propagation:
        steps.append(Step("", target, "", propagation, ""))
    return steps


def _fit(options: list[str]) -> tuple[str, str]:
    """Return a directory and options for it: lower directories become relative where they would not fit otherwise."""
    data = ",".join(options)
    lower = next((option for option in options if option.startswith("lowerdir=")), "")
    paths = lower.removeprefix("lowerdir=").split(":")
    if len(data.encode()) <= PAGE_LIMIT or len(paths) < 2 or not all(path.startswith("/") for path in paths):
        return "", data
    base = os.path.commonpath(paths)
    relative = "lowerdir=" + ":".join(os.path.relpath(path, base) for path in paths)
    return base, ",".join(relative if option == lower else option for option in options)


@contextlib.contextmanager
def _inside(directory: str) -> Iterator[None]:
    if not directory:
        yield
        return
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir("/")


def _mounted(rootfs: str) -> list[str]:
    """Return the mount points at and below rootfs in the order in which they were made."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            path = os.fsdecode(line.split(b" ", 5)[4])
            for escape, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                path = path.replace(escape, char)
            if path == rootfs or path.startswith(rootfs + "/"):
                found.append(path)
    return found
