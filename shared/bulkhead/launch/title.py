"""What ps(1) shows of a forked process: its command line, written over the one it inherited.

The kernel reads /proc/<pid>/cmdline from the memory where the arguments of the last exec stand, so there is room for
as many bytes as those had; PADDING is the argument that makes room.
"""

import ctypes
import os
from collections.abc import Sequence

from bulkhead.launch import linux

PADDING = " " * 512
_PR_SET_NAME = 15
_ARG_START, _ARG_END = 48, 49


def set_title(arguments: Sequence[str], name: str) -> None:
    """Show these arguments as the command line, cut to the room there is, and `name` (15 bytes) as the command."""
    start, end = _room()
    data = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)[: end - start - 1]
    # The last byte stays zero: one that is not makes the kernel read on into the environment.
    ctypes.memmove(start, data.ljust(end - start, b"\0"), end - start)
    linux.prctl_name(_PR_SET_NAME, name)


def _room() -> tuple[int, int]:
    """Return where the arguments begin and end (proc(5), stat)."""
    with open("/proc/self/stat") as file:
        # The command's name, in parentheses, may hold spaces.
        fields = file.read().rpartition(")")[2].split()
    return int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
