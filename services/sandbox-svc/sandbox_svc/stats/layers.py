"""How much a container's writable layer holds, counted in the background.

A count walks the whole directory, which may take seconds, so no call waits for one: it gets the last count, or none
before the first. One thread counts, one directory at a time; each again after the period, or after twenty times its
own counting time if that is longer, so that counting never takes more than 5 % of one processor per directory.
"""

import heapq
import logging
import os
import threading
import time
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_REST = 20


@dataclass(frozen=True)
class LayerUsage:
    """Bytes on disk and inodes of a directory tree, and when they were counted (nanoseconds since 1970)."""

    used_bytes: int
    inodes: int
    timestamp: int


def measure(directory: str) -> LayerUsage:
    """Count a directory tree on its own file system: blocks as du does, hard links once, what vanishes not."""
    timestamp = time.time_ns()
    top = os.lstat(directory)
    used, linked, inodes = top.st_blocks * 512, set(), 1
    pending = [directory]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if status.st_dev != top.st_dev or status.st_ino in linked:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif status.st_nlink > 1:
                    linked.add(status.st_ino)
                used, inodes = used + status.st_blocks * 512, inodes + 1
    return LayerUsage(used, inodes, timestamp)


class LayerMeter:
    """Keeps counts of watched directories. Safe to use from many threads."""

    def __init__(self, period: float) -> None:
        """Take the seconds between two counts of one directory."""
        self._period = period
        self._changed = threading.Condition()
        self._usage: dict[str, LayerUsage | None] = {}
        self._due: list[tuple[float, str]] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def usage(self, directory: str) -> LayerUsage | None:
        """Return the last count; a directory asked for the first time is counted next, and watched from now on."""
        with self._changed:
            if directory not in self._usage and not self._closed:
                self._usage[directory] = None
                heapq.heappush(self._due, (0.0, directory))
                self._ensure_thread()
                self._changed.notify()
            return self._usage.get(directory)

    def forget(self, directory: str) -> None:
        """Stop watching a directory."""
        with self._changed:
            self._usage.pop(directory, None)

    def close(self) -> None:
        """Stop counting; a count under way is the last."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread:
            self._thread.join(timeout=5)

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="layer-usage", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (directory := self._next()) is not None:
            began = time.monotonic()
            usage = self._measure(directory)
            now = time.monotonic()
            with self._changed:
                if directory in self._usage:
                    self._usage[directory] = usage
                    heapq.heappush(self._due, (now + max(self._period, _REST * (now - began)), directory))

    def _next(self) -> str | None:
        """Wait for the next directory that is due and still watched; None when closed."""
        with self._changed:
            while not self._closed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    directory = heapq.heappop(self._due)[1]
                    if directory in self._usage:
                        return directory
                else:
                    self._changed.wait(wait)
            return None

    def _measure(self, directory: str) -> LayerUsage | None:
        try:
            return measure(directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("usage of %s: %s", directory, error)
            return None
