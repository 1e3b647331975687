"""Which of this process's descriptors are open, told apart from those that come and go with other threads."""

import contextlib
import os


def open_memory_files(name: str) -> int:
    """Count this process's descriptors of memory files (memfd_create) of a name."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{fd}").startswith(f"/memfd:{name} ")
    return found
