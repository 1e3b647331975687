"""System call numbers by architecture, from the table syscalls.tsv beside this module."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

#: Set in the number of an x32 call, which the kernel reports under x86_64's audit architecture (asm/unistd.h).
X32_BIT = 0x40000000

#: The calls that 32-bit x86 also makes through socketcall(2) and ipc(2), by the code in their first argument.
_SOCKETCALL = (
    *("socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv"),
    *("sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg"),
    "sendmmsg",
)
_IPC = {
    "semop": 1,
    "semget": 2,
    "semctl": 3,
    "semtimedop": 4,
    "msgsnd": 11,
    "msgrcv": 12,
    "msgget": 13,
    "msgctl": 14,
    "shmat": 21,
    "shmdt": 22,
    "shmget": 23,
    "shmctl": 24,
}


@dataclass(frozen=True)
class Architecture:
    """One of the ABIs that a kernel serves."""

    #: Its name in linux.seccomp.architectures.
    name: str
    #: AUDIT_ARCH_… of linux/audit.h, as seccomp_data.arch holds it.
    audit: int
    #: The column of the table.
    column: str
    #: Whether arguments are compared with 64 bits.
    wide: bool


X86_64 = Architecture("SCMP_ARCH_X86_64", 0xC000003E, "x86_64", True)
X86 = Architecture("SCMP_ARCH_X86", 0x40000003, "x86", False)
X32 = Architecture("SCMP_ARCH_X32", 0xC000003E, "x32", False)
AARCH64 = Architecture("SCMP_ARCH_AARCH64", 0xC00000B7, "aarch64", True)
ARM = Architecture("SCMP_ARCH_ARM", 0x40000028, "arm", False)

BY_NAME = {architecture.name: architecture for architecture in (X86_64, X86, X32, AARCH64, ARM)}
BY_MACHINE = {"x86_64": X86_64, "aarch64": AARCH64}


@cache
def numbers(column: str) -> dict[str, int]:
    """Return the calls of a column by name; x32's with their bit set."""
    lines = (resources.files(__package__) / "syscalls.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    index = rows[0].index(column)
    bit = X32_BIT if column == X32.column else 0
    return {row[0]: int(row[index]) + bit for row in rows[1:] if row[index] != "-"}


def multiplexed(architecture: Architecture, name: str) -> tuple[str, int] | None:
    """Return the multiplexer and code by which that architecture also reaches the call, None where it does not."""
    if architecture is not X86:
        return None
    if name in _SOCKETCALL:
        return "socketcall", _SOCKETCALL.index(name) + 1
    return ("ipc", _IPC[name]) if name in _IPC else None
