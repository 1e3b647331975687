"""Standard output that nobody reads to its end, or that has no room: no reason for a traceback."""

import os
import select
import sys

#: As shells show a program that SIGPIPE has ended.
PIPE = 141


def complete() -> None:
    """Have all three standard streams: what the caller closed would else be the next file or socket that is opened.

    One that stands for closed output refuses to be written to.
    """
    for number, name, way, mode in (
        (0, "stdin", os.O_RDONLY, "r"),
        (1, "stdout", os.O_RDONLY, "w"),
        (2, "stderr", os.O_WRONLY, "w"),
    ):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, way)  # the lowest number that is free: this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def reader_gone() -> bool:
    """Whether standard output or standard error is a pipe whose reader has gone."""
    watched = select.poll()
    for number in (1, 2):
        watched.register(number, select.POLLERR)
    return any(events & select.POLLERR for _, events in watched.poll(0))


def discard() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail over it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        watched = select.poll()
        watched.register(number, select.POLLERR)
        if number == 1 or watched.poll(0):
            os.dup2(nowhere, number)
    os.close(nowhere)
