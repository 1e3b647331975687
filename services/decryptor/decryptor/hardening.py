"""What the process does to itself before it reads a key."""

import ctypes
import os
import resource

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, call: str) -> None:
    """Raise OSError with the call's name if it failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def close_to_others() -> None:
    """Leave no core file, and keep other processes of the same user from reading this one's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    check(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")
    check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def lock_memory() -> str:
    """Keep all memory out of swap, pages as they are touched; return why that was not possible, or "".

    With a limit in place nothing is locked: under MCL_FUTURE the next thread's stack would exceed it, and its
    creation fail.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY and soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        soft = hard
    if soft != resource.RLIM_INFINITY:
        return f"RLIMIT_MEMLOCK is {soft} bytes; memory is not locked and may be swapped"
    try:
        check(_libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT), "mlockall")
    except OSError as error:
        return f"{error.strerror}; memory is not locked and may be swapped"
    return ""
