"""Files that only root may read and that a service without root needs: TLS keys of registries and of streaming.

A node's certificates stay as they are. In the service's own mount namespace, each file that its user could not read is
covered by a copy in memory that it can; files it can read, and new ones, are the host's.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from bulkhead.launch import linux

#: Bounds: a certificate directory holds a few files of a few KiB for each registry.
FILE_LIMIT, COUNT_LIMIT, DEPTH_LIMIT = 1024 * 1024, 1024, 4


def closed_files(places: Sequence[str], uid: int, groups: Sequence[int]) -> list[Path]:
    """Return the regular files at or below those places whose mode keeps that user out, links followed."""
    found: list[Path] = []
    for place in places:
        for path in _files(Path(place), DEPTH_LIMIT):
            real = Path(os.path.realpath(path))
            if len(found) < COUNT_LIMIT and real not in found and not _may_read(real, uid, groups):
                found.append(real)
    return found


def grant(places: Sequence[str], directory: str, uid: int, gid: int, groups: Sequence[int]) -> None:
    """Cover each closed file by a copy for that user; runs as root in the service's own mount namespace."""
    closed = closed_files(places, uid, (gid, *groups))
    if not closed:
        return
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("ramfs", directory, "ramfs", flags, "mode=0711")
    for number, path in enumerate(closed):
        copy = Path(directory) / str(number)
        _copy(path, copy, uid, gid)
        linux.mount(str(copy), str(path), "", linux.MS_BIND)
        linux.mount("", str(path), "", linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | flags)


def _files(place: Path, depth: int) -> Iterator[Path]:
    try:
        mode = place.stat().st_mode
        names = sorted(os.listdir(place)) if stat.S_ISDIR(mode) and depth else []
    except OSError:
        return
    if stat.S_ISREG(mode):
        yield place
    for name in names:
        yield from _files(place / name, depth - 1)


def _may_read(path: Path, uid: int, groups: Sequence[int]) -> bool:
    """As the kernel decides it, access control lists aside: the owner's bits, else the group's, else the others'."""
    try:
        status = path.stat()
    except OSError:
        return True
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IRUSR)
    if status.st_gid in groups:
        return bool(status.st_mode & stat.S_IRGRP)
    return bool(status.st_mode & stat.S_IROTH)


def _copy(source: Path, target: Path, uid: int, gid: int) -> None:
    """Copy in the kernel, up to FILE_LIMIT bytes: the content never enters this process."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            left = FILE_LIMIT
            while left and (sent := os.sendfile(out, fd, None, left)):
                left -= sent
            os.fchown(out, uid, gid)
        finally:
            os.close(out)
    finally:
        os.close(fd)
