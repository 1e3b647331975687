"""A fresh copy of the key directory for a decryptor that runs: made in a child, moved into its mount namespace.

The copy is made as at the start (enter.py) in a namespace of the child's own, taken from there as a detached mount, and
put in the place of the old one; the old copy's memory is freed with its last reader.
"""

import errno
import os
import stat
from pathlib import Path

from bulkhead.launch import linux
from bulkhead.launch.enter import COUNT_LIMIT, DEPTH_LIMIT, copy_into_memory

Signature = tuple[tuple[str, tuple[int, ...]], ...]


def signature(directory: str) -> Signature:
    """Return what tells one state of a key directory from another: names, and what stat says of each."""
    found: list[tuple[str, tuple[int, ...]]] = []
    pending = [(Path(directory), 0)]
    while pending and len(found) <= COUNT_LIMIT:
        here, depth = pending.pop()
        try:
            names = sorted(os.listdir(here))
        except OSError:
            continue
        for name in names:
            if name.startswith(".."):
                continue
            path = here / name
            try:
                status = path.stat()
            except OSError as error:
                found.append((str(path), (error.errno or -1,)))
                continue
            if stat.S_ISDIR(status.st_mode) and depth < DEPTH_LIMIT:
                pending.append((path, depth + 1))
            found.append((str(path), (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)))
    return tuple(found)


def refresh(pid: int, source: str, target: str, owner: tuple[int, int]) -> None:
    """Give the process `pid`, which sees a copy of `source` at `target`, a fresh one; OSError says why not.

    Nothing is done to a process that is not in a mount namespace of its own yet: it will copy what is there now.
    `owner` is the copy's uid and gid. Runs in a fork, of a process with one thread; no key's bytes enter either.
    """
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(namespace).st_ino == os.stat("/proc/self/ns/mnt").st_ino:
            return
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _be_child(namespace, source, target, owner, write)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            complaint = pipe.read()
        _, status = os.waitpid(child, 0)
        if complaint or status:
            raise OSError(0, complaint.decode(errors="replace") or f"the copying process ended with status {status}")
    finally:
        os.close(namespace)


def _be_child(namespace: int, source: str, target: str, owner: tuple[int, int], answer: int) -> None:
    status = 1
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("", "/", "", linux.MS_REC | linux.MS_SLAVE)
        copy_into_memory(source, target, *owner)
        tree = linux.open_tree(target)
        linux.setns(namespace, linux.CLONE_NEWNS)
        _unmount_old(target)
        linux.move_mount(tree, target)
        status = 0
    except OSError as error:
        os.write(answer, str(error.strerror or error).encode()[:1000])
    finally:
        os._exit(status)


def _unmount_old(target: str) -> None:
    try:
        linux.unmount(target)
    except OSError as error:
        # Nothing is mounted there: an earlier child was killed before it had put the new one in its place.
        if error.errno != errno.EINVAL:
            raise
