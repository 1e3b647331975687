"""Small files in a bundle: what a runtime is told, what it answers, what outlives the shim."""

import os
from contextlib import suppress


def write(path: str, data: bytes) -> None:
    """Write a file that only root may read, over what was there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def replace(path: str, data: bytes) -> None:
    """Put a new file in a path's place: readers see the old bytes or the new."""
    fresh = f"{path}.{os.getpid()}"
    try:
        write(fresh, data)
        os.rename(fresh, path)
    except BaseException:
        remove(fresh)
        raise


def read(path: str) -> bytes:
    """Return what a small file holds, at most 64 KiB."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Remove a file if it is there."""
    with suppress(OSError):
        os.unlink(path)
