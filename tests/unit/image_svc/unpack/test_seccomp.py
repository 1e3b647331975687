"""The system call filter of the unpack helper's worker."""

import os

import pytest

from image_svc.unpack import seccomp
from support.bpf import answer

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def verdict(machine: str, number: int, third: int = 0, architecture: int | None = None) -> int:
    """Return what the filter answers for a call."""
    return answer(seccomp.program(machine), architecture or ARCHITECTURE[machine], number, (0, 0, third))


FORBIDDEN = {
    "x86_64": {
        "socket": 41, "connect": 42, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101,
        "prctl": 157, "chroot": 161, "mount": 165, "init_module": 175, "capset": 126, "unshare": 272, "setns": 308,
        "execveat": 322, "bpf": 321, "userfaultfd": 323, "open_by_handle_at": 304, "keyctl": 250, "io_uring_setup": 425,
        "clone3": 435, "seccomp": 317, "perf_event_open": 298, "process_vm_writev": 311, "mount_setattr": 442,
        "x32 write": 0x40000001, "setuid": 105, "ioctl": 16, "tgkill": 234, "pidfd_getfd": 438, "fsopen": 430,
    },
    "aarch64": {
        "socket": 198, "connect": 203, "clone": 220, "execve": 221, "kill": 129, "ptrace": 117, "prctl": 167,
        "chroot": 51, "mount": 40, "init_module": 105, "capset": 91, "unshare": 97, "setns": 268, "execveat": 281,
        "bpf": 280, "clone3": 435, "io_uring_setup": 425, "seccomp": 277, "setuid": 146, "ioctl": 29,
    },
}  # fmt: skip


@pytest.mark.parametrize("machine", FORBIDDEN)
def test_what_could_get_out_is_fatal(machine: str) -> None:
    """Sockets, programs, processes, mounts, namespaces and the like kill the process on both architectures."""
    found = {name: verdict(machine, number) for name, number in FORBIDDEN[machine].items()}

    assert set(found.values()) == {KILL}, found


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_what_the_work_needs_is_allowed(machine: str, column: int) -> None:
    """Every call of the list is let through under its number on that architecture."""
    for name, numbers in seccomp.ALLOWED.items():
        number = numbers[column]
        assert number is not None
        assert verdict(machine, number) == ALLOW, name


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_memory_is_never_executable(machine: str, column: int) -> None:
    """mmap and mprotect are let through unless the protection has PROT_EXEC."""
    for numbers in seccomp.WITHOUT_EXEC.values():
        assert verdict(machine, numbers[column], third=3) == ALLOW
        assert verdict(machine, numbers[column], third=5) == KILL


def test_another_architecture_is_fatal() -> None:
    """A call made in another architecture's mode (int 0x80 from 64 bits) is killed, whatever its number."""
    assert verdict("x86_64", 0, architecture=0x40000003) == KILL


def test_this_machine_has_a_filter() -> None:
    """The machine the tests run on is one of those supported."""
    assert seccomp.supported(os.uname().machine)
    assert not seccomp.supported("sparc")
