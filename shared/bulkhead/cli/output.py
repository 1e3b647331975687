"""Standard output that nobody reads to its end, or that has no room: no reason for a traceback."""

import os
import select

#: As shells show a program that SIGPIPE has ended.
PIPE = 141


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
