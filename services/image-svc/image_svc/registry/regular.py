"""Files that others put into directories: what is no regular file is an error, not something to wait for."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read(path: Path) -> bytes:
    """Return what is in a regular file; OSError for anything else, of which a pipe would keep its reader for ever."""
    with _opened(path) as fd, os.fdopen(fd, "rb", closefd=False) as file:
        return file.read()


def check(path: Path) -> None:
    """Raise the OSError that reading a file would meet."""
    with _opened(path):
        return


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield fd
    finally:
        os.close(fd)
