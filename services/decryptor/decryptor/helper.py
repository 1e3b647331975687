"""The process that starts programs for the decryptor: key providers and readers of PKCS#11 modules.

It is forked before the first key is read and before the decryptor gives up starting programs, so that neither it nor
what it starts ever held a key of the decryptor's memory. Each order comes with a connection of its own, is carried out
in a fork of its own, and gives its program nothing but the input, the environment and the time of the order.
"""

import gc
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import NoReturn

from bulkhead import command, seqpacket
from bulkhead.errors import BulkheadError, InvalidArgument, Unavailable, from_code
from bulkhead.launch.title import set_title
from decryptor import landlock

#: Bytes that a program may be given, and may write: a wrapped key with its envelope.
LIMIT = 4 * 1024 * 1024
#: What programs see of the environment, beside what an order says.
_ENVIRONMENT = ("PATH", "LANG", "TZ")
#: Seconds that an answer may take beyond the program's own time.
_GRACE = 10.0


class Helper:
    """The decryptor's end."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._sock, self.pid = sock, pid
        #: Directories that no program may read: where the decryptor's keys are, whose user it runs as.
        self.hidden: tuple[str, ...] = ()
        # Now: later the filter forbids it.
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def fork(cls) -> "Helper":
        """Start the helper; while this process has one thread and no key."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        return cls(ours, pid)

    def alive(self) -> bool:
        """Whether the helper goes on; there is no starting another one."""
        return not select.select([self._pidfd], [], [], 0)[0]

    def run(self, args: Sequence[str], *, input: bytes, timeout: float, env: Mapping[str, str] | None = None) -> bytes:
        """Run a program to its end and return its output; BulkheadError with its complaint if it fails."""
        if len(input) > LIMIT:
            raise InvalidArgument(f"{args[0]} would be given {len(input)} bytes, at most {LIMIT}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            given, taken = _memory(input), _memory(b"")
            try:
                order = {"args": list(args), "env": dict(env or {}), "timeout": timeout, "hidden": self.hidden}
                try:
                    seqpacket.send(self._sock, order, (theirs.fileno(), given, taken))
                    theirs.close()
                    ours.settimeout(timeout + _GRACE)
                    answer, fds = seqpacket.receive(ours)
                except OSError as error:
                    raise Unavailable(f"{args[0]} cannot be started: the decryptor's helper is gone") from error
                for fd in fds:
                    os.close(fd)
                if answer is None:
                    raise Unavailable(f"{args[0]}: the decryptor's helper died")
                if error_text := answer.get("error"):
                    raise from_code(int(answer.get("code", 13)), str(error_text))
                return os.pread(taken, LIMIT, 0)
            finally:
                os.close(given)
                os.close(taken)


def _memory(data: bytes) -> int:
    """Return a memory file with that content. What goes through it is a layer's key, so it is never named."""
    fd = os.memfd_create("order", os.MFD_CLOEXEC)
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
    return fd


def _serve(sock: socket.socket) -> NoReturn:
    """Take orders until the decryptor is gone."""
    status = 1
    try:
        # Collecting would write to every page that is shared with the decryptor.
        gc.disable()
        # The listener of the metrics among them, which belongs to the decryptor.
        os.closerange(3, sock.fileno())
        os.closerange(sock.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        set_title(("decryptor-helper",), "decryptor-helper")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the decryptor's end ends this
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # The kernel reaps the forks.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            order, fds = seqpacket.receive(sock)
            if order is None:
                break
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                sock.close()
                _carry_out(order, fds)
            for fd in fds:
                os.close(fd)
        status = 0
    finally:
        os._exit(status)


def _carry_out(order: dict[str, object], fds: list[int]) -> NoReturn:
    """Run one program and answer on its order's connection."""
    status = 1
    try:
        reply, given, taken = fds
        with socket.socket(fileno=reply) as connection:
            seqpacket.send(connection, _hide(order) or _outcome(order, given, taken))
        status = 0
    finally:
        os._exit(status)


def _hide(order: dict[str, object]) -> dict[str, object] | None:
    """Keep the keys from what is about to be started, where the kernel can; return the answer if that went wrong."""
    hidden = order["hidden"]
    assert isinstance(hidden, list)
    if not hidden or not landlock.available():
        return None
    try:
        landlock.hide(hidden)
    except OSError as error:
        return {"error": f"the keys cannot be kept from programs: {error.strerror}", "code": 13}
    return None


def _outcome(order: dict[str, object], given: int, taken: int) -> dict[str, object]:
    args, timeout, extra = order["args"], order["timeout"], order["env"]
    assert isinstance(args, list)
    assert isinstance(timeout, float)
    assert isinstance(extra, dict)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | extra
    try:
        result = command.run(
            args, timeout=timeout, input=os.pread(given, LIMIT, 0), env=environment, cwd="/", limit=LIMIT
        )
    except BulkheadError as error:
        return {"error": str(error), "code": error.code}
    except OSError as error:
        return {"error": f"{args[0]}: {error.strerror}", "code": 9}
    if result.returncode:
        # Standard error alone: what it wrote to standard output may be a key.
        complaint = result.stderr.decode(errors="replace").strip()[-1000:] or f"exit status {result.returncode}"
        return {"error": f"{args[0]} failed: {complaint}", "code": 9}
    os.ftruncate(taken, 0)
    os.lseek(taken, 0, os.SEEK_SET)
    left = memoryview(result.stdout)
    while left:
        left = left[os.write(taken, left) :]
    return {"done": True}
