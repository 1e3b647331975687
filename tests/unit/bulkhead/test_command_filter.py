"""A program between two descriptors that cannot be watched leaves nothing behind."""

import errno
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bulkhead.command import Filter


def no_descriptor(_: int) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(("what", "failing"), [("os.pidfd_open", no_descriptor), ("threading.Thread.start", no_thread)])
def test_nothing_is_left(what: str, failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor or a thread to watch it with, the program is killed and reaped, and no descriptor stays."""
    spawn, started = os.posix_spawn, list[int]()

    def noted(*arguments: Any, **more: Any) -> int:
        started.append(spawn(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(os, "posix_spawn", noted)
    monkeypatch.setattr(what, failing)
    source, sink = os.pipe()
    before = sorted(os.listdir("/proc/self/fd"))

    with pytest.raises((OSError, RuntimeError)):
        Filter(["sleep", "60"], source=source, sink=sink, env={"PATH": os.defpath})

    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0], os.WNOHANG)
    os.close(source)
    os.close(sink)
