"""The system calls a confined process may make; any other kills it.

The list is what the interpreter and the modules here need to work on files. What matters is what it lacks: sockets,
programs, processes, signals, mounts, namespaces, keys, bpf, ptrace, io_uring, and memory that can be executed.
"""

import ctypes
import os
import struct

from image_svc.unpack import linux

#: (x86_64, aarch64); None where the architecture has no such call. From the kernel's syscall tables.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
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
    "syncfs": (306, 267),
    "renameat2": (316, 276),
    "getrandom": (318, 278),
    "copy_file_range": (326, 285),
    "statx": (332, 291),
    "openat2": (437, 437),
}
#: Allowed as long as the third argument does not ask for PROT_EXEC.
WITHOUT_EXEC: dict[str, tuple[int, int]] = {"mmap": (9, 222), "mprotect": (10, 226)}

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
_PROT_EXEC = 4

_KILL_PROCESS = 0x80000000
_ALLOW = 0x7FFF0000
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
# Offsets in struct seccomp_data; an argument's low half comes first on both architectures.
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 16 + 2 * 8
_SECCOMP_MODE_FILTER = 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def program(machine: str) -> bytes:
    """Return the filter for a machine name of uname(2) as an array of struct sock_filter.

    x86_64's x32 calls have numbers of their own (bit 30 set), none of which is in the list.
    """
    column, architecture = _MACHINES[machine]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for either in WITHOUT_EXEC.values():
        code += [
            (_JUMP_EQUAL, 0, 4, either[column]),
            (_LOAD, 0, 0, _THIRD_ARGUMENT),
            (_JUMP_SET, 0, 1, _PROT_EXEC),
            (_RETURN, 0, 0, _KILL_PROCESS),
            (_RETURN, 0, 0, _ALLOW),
        ]
    code.append((_RETURN, 0, 0, _KILL_PROCESS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def supported(machine: str) -> bool:
    """Tell whether there is a filter for this machine."""
    return machine in _MACHINES


def install() -> None:
    """Put this process under the filter, for good; no_new_privs must be set."""
    code = program(os.uname().machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = _Program(len(code) // 8, ctypes.addressof(buffer))
    linux.prctl(linux.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(filter_program))
