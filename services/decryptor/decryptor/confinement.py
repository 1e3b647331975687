"""The system calls the decryptor may make once it holds keys: no programs, no processes, no network.

What is not in the list fails with EPERM rather than killing the process, since libraries try newer calls and fall back;
what only an intruder would call kills it. Programs are started by the helper, which was forked before.
"""

import errno
import os
import socket

from bulkhead import seccomp
from bulkhead.seccomp import ALLOW, KILL, Call, fails

#: (x86_64, aarch64), from the kernel's tables; None where the architecture has no such call.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "pipe": (22, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "mincore": (27, 232),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "connect": (42, 203),
    "accept": (43, 202),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "shutdown": (48, 210),
    "bind": (49, 200),
    "listen": (50, 201),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "socketpair": (53, 199),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "exit": (60, 93),
    "uname": (63, 160),
    "fcntl": (72, 25),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "getdents": (78, None),
    "getcwd": (79, 17),
    "unlink": (87, None),
    "readlink": (89, None),
    "chmod": (90, None),
    "umask": (95, 166),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "mlock": (149, 228),
    "munlock": (150, 229),
    "prctl": (157, 167),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "epoll_create": (213, None),
    "getdents64": (217, 61),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "tgkill": (234, 131),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "readlinkat": (267, 78),
    "fchmodat": (268, 53),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "epoll_pwait": (281, 22),
    "accept4": (288, 242),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "prlimit64": (302, 261),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "memfd_create": (319, 279),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
    "epoll_pwait2": (441, 441),
}

#: Nothing here ever calls these: whoever does has taken the process over.
FATAL: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "kill": (62, 129),
    "ptrace": (101, 117),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "capset": (126, 91),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "init_module": (175, 105),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "bpf": (321, 280),
    "execveat": (322, 281),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "pidfd_getfd": (438, 438),
}

_SOCKET, _CLONE, _CLONE3 = (41, 198), (56, 220), (435, 435)
_CLONE_THREAD = 0x00010000


def program(machine: str) -> bytes:
    """Return the filter for a machine name of uname(2)."""
    calls = [Call(numbers) for numbers in ALLOWED.values()]
    calls += [Call(numbers, KILL) for numbers in FATAL.values()]
    calls += [
        # The metrics' TCP listener was handed over; accepting from it takes no socket(2).
        Call(_SOCKET, ALLOW, argument=0, value=socket.AF_UNIX, otherwise=fails(errno.EAFNOSUPPORT)),
        Call(_CLONE, ALLOW, argument=0, bits=_CLONE_THREAD),
        # Its flags are behind a pointer; the C library falls back to clone.
        Call(_CLONE3, fails(errno.ENOSYS)),
    ]
    return seccomp.program(machine, calls, fails(errno.EPERM))


def install() -> str:
    """Put this process under the filter, before it starts threads; return why that was not possible, or ""."""
    machine = os.uname().machine
    if machine not in seccomp.MACHINES:
        return f"no system call filter for {machine}: the decryptor runs without one"
    try:
        seccomp.install(program(machine))
    except OSError as error:
        return f"{error.strerror}: the decryptor runs without a system call filter"
    return ""
