"""The system calls a confined process may make; any other kills it.

The list is what the interpreter and the modules here need to work on files. What matters is what it lacks: sockets,
programs, processes, signals, mounts, namespaces, keys, bpf, ptrace, io_uring, and memory that can be executed.
"""

import functools
import os

from bulkhead import seccomp
from bulkhead.seccomp import KILL, Call

#: (x86_64, aarch64); None where the architecture has no such call. From the kernel's syscall tables.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "exit": (60, 93),
    "fcntl": (72, 25),
    "ftruncate": (77, 46),
    "fchmod": (91, 52),
    "fchown": (93, 55),
    "sigaltstack": (131, 132),
    "fsetxattr": (190, 7),
    "fgetxattr": (193, 10),
    "flistxattr": (196, 13),
    "futex": (202, 98),
    "getdents64": (217, 61),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "openat": (257, 56),
    "mkdirat": (258, 34),
    "mknodat": (259, 33),
    "fchownat": (260, 54),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "linkat": (265, 37),
    "symlinkat": (266, 36),
    "readlinkat": (267, 78),
    "fchmodat": (268, 53),
    "utimensat": (280, 88),
    "sync_file_range": (277, 84),
    "syncfs": (306, 267),
    "renameat2": (316, 276),
    "getrandom": (318, 278),
    "copy_file_range": (326, 285),
    "statx": (332, 291),
    "openat2": (437, 437),
}
#: What is left to a process that reads one pipe and fills memory: no way to name a file or to change one.
DECODING = frozenset(
    (
        "read", "readv", "write", "close", "fstat", "munmap", "brk", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
        "mremap", "madvise", "exit", "sigaltstack", "futex", "clock_gettime", "exit_group", "getrandom",
    )
)  # fmt: skip
#: Allowed as long as the third argument does not ask for PROT_EXEC.
WITHOUT_EXEC: dict[str, tuple[int, int]] = {"mmap": (9, 222), "mprotect": (10, 226)}

_PROT_EXEC = 4
#: Everything in the list: for processes that write files.
FILES = frozenset(ALLOWED)


@functools.cache
def program(machine: str, names: frozenset[str] = FILES) -> bytes:
    """Return the filter for a machine name of uname(2) as an array of struct sock_filter; `names` are of ALLOWED."""
    calls = [Call(ALLOWED[name]) for name in names]
    calls += [
        Call(numbers, KILL, argument=2, bits=_PROT_EXEC, otherwise=seccomp.ALLOW) for numbers in WITHOUT_EXEC.values()
    ]
    return seccomp.program(machine, calls, KILL)


def supported(machine: str) -> bool:
    """Tell whether there is a filter for this machine."""
    return machine in seccomp.MACHINES


def prepare() -> None:
    """Make the filters ahead: a worker is forked with them instead of making its own."""
    for names in (FILES, DECODING):
        program(os.uname().machine, names)


def install(names: frozenset[str]) -> None:
    """Put this process under the filter of these calls, for good; no_new_privs must be set."""
    seccomp.install(program(os.uname().machine, names))
