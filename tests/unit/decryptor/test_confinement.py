"""The decryptor's system call filter."""

import errno

import pytest

from bulkhead import seccomp
from bulkhead.seccomp import ALLOW, KILL, fails
from decryptor import confinement
from support.bpf import answer


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Return what the filter answers for a call."""
    return answer(confinement.program(machine), architecture or seccomp.MACHINES[machine][1], number, arguments)


NUMBERS = {
    "x86_64": {"socket": 41, "clone": 56, "clone3": 435},
    "aarch64": {"socket": 198, "clone": 220, "clone3": 435},
}


@pytest.mark.parametrize("machine", NUMBERS)
def test_sockets_are_unix_ones(machine: str) -> None:
    """A process that holds keys makes sockets of no network, whatever its namespace has."""
    number = NUMBERS[machine]["socket"]

    assert verdict(machine, number, 1) == ALLOW
    for family in (2, 10, 16, 17, 40):
        assert verdict(machine, number, family) == fails(errno.EAFNOSUPPORT)


@pytest.mark.parametrize("machine", NUMBERS)
def test_threads_but_no_processes(machine: str) -> None:
    """clone is for threads; clone3, whose flags cannot be seen, is as if it were not there."""
    assert verdict(machine, NUMBERS[machine]["clone"], 0x00010000 | 0x100) == ALLOW
    assert verdict(machine, NUMBERS[machine]["clone"], 17) == KILL
    assert verdict(machine, NUMBERS[machine]["clone3"]) == fails(errno.ENOSYS)


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_lists_are_as_they_read(machine: str, column: int) -> None:
    """What is allowed is, what is fatal kills, and anything else fails with EPERM."""
    for numbers in confinement.ALLOWED.values():
        if (number := numbers[column]) is not None:
            assert verdict(machine, number) == ALLOW
    for numbers in confinement.FATAL.values():
        if (number := numbers[column]) is not None:
            assert verdict(machine, number) == KILL
    assert verdict(machine, 9999) == fails(errno.EPERM)


def test_programs_and_other_memory_are_fatal() -> None:
    """Starting a program, tracing, and reading another process's memory kill, on either architecture."""
    fatal = {"x86_64": (59, 322, 101, 310, 311), "aarch64": (221, 281, 117, 270, 271)}

    assert {verdict(machine, number) for machine, numbers in fatal.items() for number in numbers} == {KILL}


def test_no_number_is_in_both_lists() -> None:
    """A call is allowed or fatal, never both: the first would win."""
    for column in (0, 1):
        both = [numbers[column] for table in (confinement.ALLOWED, confinement.FATAL) for numbers in table.values()]
        numbers = [number for number in both if number is not None]
        assert len(numbers) == len(set(numbers))


def test_another_architecture_is_fatal() -> None:
    """A call made in another architecture's mode is killed, whatever its number."""
    assert verdict("x86_64", 0, architecture=0x40000003) == KILL
