"""System call filters: from a list of calls to the kernel's instructions (seccomp(2), classic BPF).

A list gives each call its number on both architectures and what comes of it; what is not in the list gets the default.
The list is its owner's, since every entry is a decision: image-svc's unpack worker and the decryptor have one each.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

#: Machine name of uname(2) -> its column in a call's numbers, AUDIT_ARCH_*.
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

ALLOW, KILL = 0x7FFF0000, 0x80000000
_ERRNO = 0x00050000

_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
# Offsets in struct seccomp_data; an argument's low half comes first on both architectures.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def fails(number: int) -> int:
    """Return the verdict that makes a call fail with that errno."""
    return _ERRNO | number


@dataclass(frozen=True)
class Call:
    """What comes of one system call, by its numbers on x86_64 and aarch64; None where there is no such call.

    With an argument named (0 to 5), `verdict` holds if its low 32 bits have one of the `bits`, or equal `value` where
    there are no bits; else `otherwise` does.
    """

    numbers: tuple[int | None, int | None]
    verdict: int = ALLOW
    argument: int | None = None
    bits: int = 0
    value: int = 0
    otherwise: int = KILL


def program(machine: str, calls: Iterable[Call], default: int) -> bytes:
    """Return the filter for a machine as an array of struct sock_filter.

    A call in another architecture's mode kills the process. x86_64's x32 calls have numbers of their own (bit 30 set),
    and get the default.
    """
    column, architecture = MACHINES[machine]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for call in calls:
        number = call.numbers[column]
        if number is None:
            continue
        if call.argument is None:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, call.verdict)]
            continue
        test = (_JUMP_SET, 0, 1, call.bits) if call.bits else (_JUMP_EQUAL, 0, 1, call.value)
        code += [
            (_JUMP_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * call.argument),
            test,
            (_RETURN, 0, 0, call.verdict),
            (_RETURN, 0, 0, call.otherwise),
        ]
    code.append((_RETURN, 0, 0, default))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(code: bytes) -> None:
    """Put this thread, and those it starts, under the filter for good; no_new_privs must be set. OSError if refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = _Program(len(code) // 8, ctypes.addressof(buffer))
    zero = ctypes.c_ulong(0)
    arguments = (ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.c_void_p(ctypes.addressof(filter_program)), zero, zero)
    if libc.prctl(ctypes.c_int(_PR_SET_SECCOMP), *arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_SECCOMP): {os.strerror(number)}")
