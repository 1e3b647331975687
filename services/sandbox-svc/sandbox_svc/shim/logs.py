"""The CRI log: `<RFC3339Nano> stdout|stderr P|F <text>`, one file for both streams, formatted a read at a time.

A line longer than the limit is cut into pieces tagged P, the last of them F; what stands at the end of a stream
without a line feed is tagged P, as containerd tags it. Format: kubernetes.io, "CRI log format"; kubelet
pkg/kubelet/kuberuntime/logs.
"""

import errno
import logging
import os
import stat
import time

from bulkhead.errors import FailedPrecondition

logger = logging.getLogger(__name__)

#: Pieces of a line never grow beyond this, whatever the configuration allows: the rest of a line waits in memory.
PIECE_LIMIT = 1 << 20

#: Log lines in pieces that are to be written one after the other.
Lines = list[bytes | memoryview]

#: The last second that was formatted, and its text.
_last = (-1, b"")


def timestamp(ns: int) -> bytes:
    """Return a time in ns since 1970 as RFC 3339 with nine decimals, in UTC."""
    global _last
    seconds, rest = divmod(ns, 1_000_000_000)
    if _last[0] != seconds:
        _last = (seconds, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds)).encode())
    return b"%s%09dZ" % (_last[1], rest)


class Formatter:
    """Turns the bytes of one stream into log lines, keeping an unfinished line until it ends."""

    __slots__ = ("_limit", "_pending", "_tag")

    def __init__(self, stream: str, max_line_size: int) -> None:
        self._tag = stream.encode()
        self._limit = max_line_size if 0 < max_line_size < PIECE_LIMIT else PIECE_LIMIT
        self._pending = b""

    def feed(self, data: bytes, now: int) -> Lines:
        """Return the log lines that this read completes; now is its time in ns since 1970."""
        stamp = timestamp(now)
        end = data.rfind(b"\n") + 1
        if not end:
            self._pending += data
            return self._cut(stamp)
        whole = self._pending + data[:end] if self._pending else data[:end]
        self._pending = data[end:]
        full = b"%s %s F " % (stamp, self._tag)
        if self._fits(whole):
            # One copy in all: the prefix that follows the last line feed is left out by a view.
            lines: Lines = [full, memoryview(whole.replace(b"\n", b"\n" + full))[: -len(full)]]
        else:
            lines = [self._pieces(whole, stamp, full)]
        return lines + self._cut(stamp) if len(self._pending) > self._limit else lines

    def finish(self, now: int) -> Lines:
        """Return what the stream ended with, if that was no whole line."""
        rest, self._pending = self._pending, b""
        return [b"%s %s P %s\n" % (timestamp(now), self._tag, rest)] if rest else []

    def _fits(self, whole: bytes) -> bool:
        """Whether no line is longer than the limit: from each line feed on there is another one within reach."""
        at, enough = 0, len(whole) - self._limit - 1
        while at < enough:
            at = whole.rfind(b"\n", at, at + self._limit + 1) + 1
            if not at:
                return False
        return True

    def _pieces(self, whole: bytes, stamp: bytes, full: bytes) -> bytes:
        part, limit, out = b"%s %s P " % (stamp, self._tag), self._limit, list[bytes]()
        for line in whole[:-1].split(b"\n"):
            at = 0
            while len(line) - at > limit:
                out.append(part + line[at : at + limit])
                at += limit
            out.append(full + line[at:])
        return b"\n".join(out) + b"\n"

    def _cut(self, stamp: bytes) -> Lines:
        """Write out the pieces that an unfinished line already has, so that it never grows beyond the limit."""
        pending, limit, at = self._pending, self._limit, 0
        if len(pending) <= limit:
            return []
        part, out = b"%s %s P " % (stamp, self._tag), list[bytes]()
        while len(pending) - at > limit:
            out.append(part + pending[at : at + limit])
            at += limit
        self._pending = pending[at:]
        return [b"\n".join(out) + b"\n"]


class LogFile:
    """A container's log file; without a path everything written to it is dropped."""

    __slots__ = ("_failed", "_fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = _open(path) if path else -1
        self._failed = False

    def write(self, *parts: bytes | memoryview) -> None:
        """Append; a disk that refuses loses these lines, because a container must never wait for its log."""
        if self._fd < 0:
            return
        try:
            written = os.writev(self._fd, parts)
            if written < sum(map(len, parts)):
                rest = b"".join(parts)[written:]
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.error("%s: lines are lost: %s", self.path, error)
            self._failed = True

    def reopen(self) -> None:
        """Open the path anew, creating it 0640 where it was renamed away; the old file stays in use on failure."""
        if self.path:
            fresh = _open(self.path)
            self.close()
            self._fd = fresh

    def close(self) -> None:
        """Close the file; a second close does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(path: str) -> int:
    """Open a log to append to; FailedPrecondition where a container that can write beside it has put something else.

    A symlink would have root write into whatever it names, a named pipe would stop the shim until somebody reads it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise FailedPrecondition(f"log {path} is a symlink or a pipe, expected a file") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FailedPrecondition(f"log {path} is no file")
    return fd
