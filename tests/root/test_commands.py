"""Programs that a service starts: none of them, nor what it leaves behind, holds the service up."""

import time

import pytest

from bulkhead import command
from bulkhead.errors import DeadlineExceeded

pytestmark = pytest.mark.root


def test_a_grandchild_that_keeps_the_pipes_does_not_outlast_the_deadline() -> None:
    """A plugin's daemon leaves the group, and so survives it; its hold on the plugin's output is nobody's wait."""
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="and was killed"):
        command.run(["/bin/sh", "-c", "setsid sleep 5 & exec sleep 5"], timeout=0.3)
    assert time.monotonic() - began < 3


def test_a_program_that_takes_no_input_is_killed_on_time() -> None:
    """More input than a pipe holds is waiting for it when it is killed."""
    with pytest.raises(DeadlineExceeded):
        command.run(["/bin/sleep", "5"], timeout=0.2, input=b"x" * (1 << 20))
