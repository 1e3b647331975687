"""Programs that a service starts: none of them, nor what it leaves behind, holds the service up."""

import time

import pytest

from bulkhead import command
from bulkhead.errors import DeadlineExceeded, ResourceExhausted

pytestmark = pytest.mark.root


def test_a_grandchild_that_keeps_the_pipes_does_not_outlast_the_deadline() -> None:
    """A plugin's daemon leaves the group, and so survives it; its hold on the plugin's output is nobody's wait."""
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="and was killed"):
        command.run(["/bin/sh", "-c", "setsid sleep 30 & exec sleep 30"], timeout=0.3)
    assert time.monotonic() - began < 25


def test_a_program_that_takes_no_input_is_killed_on_time() -> None:
    """More input than a pipe holds is waiting for it when it is killed."""
    with pytest.raises(DeadlineExceeded):
        command.run(["/bin/sleep", "30"], timeout=0.2, input=b"x" * (1 << 20))


def test_the_end_counts_and_not_that_of_the_output() -> None:
    """A program that closes its outputs first is waited for, until its deadline at most."""
    assert command.run(["/bin/sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 4"], timeout=30).returncode == 4
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        command.run(["/bin/sh", "-c", "exec >&- 2>&-; exec sleep 30"], timeout=0.3)
    assert time.monotonic() - began < 25


def test_output_has_a_bound() -> None:
    """A program that writes without end is killed when it has written what it may; one at the bound is not."""
    began = time.monotonic()
    with pytest.raises(ResourceExhausted, match="/bin/sh wrote more than 65536 bytes and was killed"):
        command.run(["/bin/sh", "-c", "while :; do echo yes; done"], timeout=60, limit=65536)
    assert time.monotonic() - began < 50
    exact = command.run(
        ["/bin/sh", "-c", "head -c 65000 /dev/zero; head -c 536 /dev/zero >&2"], timeout=30, limit=65536
    )
    assert (len(exact.stdout), len(exact.stderr)) == (65000, 536)


def test_both_directions_at_once() -> None:
    """More than a pipe holds goes in and comes out; a program that does not read its input ends as it likes."""
    text = bytes(range(256)) * 4096
    assert command.run(["/bin/cat"], timeout=30, input=text).stdout == text
    assert command.run(["/bin/sh", "-c", "exit 3"], timeout=30, input=text).returncode == 3
