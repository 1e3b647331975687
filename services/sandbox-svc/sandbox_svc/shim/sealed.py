"""crun in a sealed memory file, from which it runs in one go.

A container may reach the program that enters it by /proc/<pid>/exe and write to it (CVE-2019-5736). So crun copies
itself into a memory file, seals that and executes itself again, at every call, unless it finds that it runs from such a
file already. One copy, made before the first fork and open in every shim, spares each call half of its processor time,
0.8 ms of 1.6, and its content is as safe: a sealed file can be written by nobody. Its mode is not, nor is it from being
held open for writing: a shim that cannot execute it forgets it and runs the file on disk, which copies itself as ever.
runc is left alone, it gains nothing.
"""

import fcntl
import logging
import os
import select
import shutil
import signal

logger = logging.getLogger(__name__)

NAME = "crun"
#: What crun looks for (cloned_binary.c); other seals, more or fewer, have it copy itself again.
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
#: memfd_create(2), Linux 6.3: the file may be executed whatever vm.memfd_noexec makes the default.
_MFD_EXEC = 0x10
_ELF = b"\x7fELF"
#: Bytes of a program beyond which it is none of the crun that we know.
_LIMIT = 16 << 20
#: Seconds that it may take to tell its version.
PATIENCE = 10.0


class Copy:
    """A program's copy, as long as the file it was made of is the one on disk."""

    __slots__ = ("_made_of", "fd")

    def __init__(self) -> None:
        self.fd = -1
        self._made_of: tuple[int, ...] = ()

    def take(self, path: str) -> bool:
        """Copy a program and see it run; False, with nothing kept, where that cannot be done."""
        try:
            self._made_of = _identity(path)
            with open(path, "rb") as file:
                program = file.read(_LIMIT + 1)
            if not program.startswith(_ELF) or len(program) > _LIMIT:
                return False  # a script would be closed before its interpreter opens it
            self.fd = _sealed(program)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                streams = [(os.POSIX_SPAWN_DUP2, null, target) for target in range(3)]
                pid = os.posix_spawn(self.program(path), [path, "--version"], {}, file_actions=streams)
            finally:
                os.close(null)
            if _status(pid) == 0:
                return True
        except OSError as error:
            logger.info("%s runs from its file: %s", path, error)
        self.drop()
        return False

    def program(self, path: str) -> str:
        """Return what to execute for a program: the copy if it is one of it, else the path itself.

        A package that was upgraded since is another file, and is used at once.
        """
        if self.fd < 0:
            return path
        try:
            return f"/proc/self/fd/{self.fd}" if _identity(path) == self._made_of else path
        except OSError:
            return path

    def drop(self) -> None:
        """Forget the copy."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


#: The copy that every shim inherits.
crun = Copy()


def prepare() -> None:
    """Copy this node's crun, if there is one."""
    path = shutil.which(NAME)
    if path is not None:
        crun.take(path)


def _identity(path: str) -> tuple[int, ...]:
    """Return what changes with a file's content."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _status(pid: int) -> int:
    """Return how a child ended, which is killed if that takes longer than PATIENCE."""
    pidfd = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        if not waiting.poll(PATIENCE * 1000):
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
    return os.waitpid(pid, 0)[1]


def _sealed(program: bytes) -> int:
    """Return a read-only descriptor of a sealed memory file."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(NAME, flags | _MFD_EXEC)
    except OSError:
        fd = os.memfd_create(NAME, flags)
    try:
        rest = memoryview(program)
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
