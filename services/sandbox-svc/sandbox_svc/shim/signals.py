"""Signals as descriptors: signalfd(2), which the standard library lacks."""

import ctypes
import os
import signal
import struct
from collections.abc import Iterable

from sandbox_svc.linux import check

_libc = ctypes.CDLL(None, use_errno=True)


def signalfd(signals: Iterable[int]) -> int:
    """Block these signals and return a descriptor that is readable while one of them is pending."""
    numbers = list(signals)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    mask = sum(1 << (number - 1) for number in numbers)
    # The C library's sigset_t has 1024 bits, of which the kernel knows the first 64.
    raw = ctypes.create_string_buffer(struct.pack("Q", mask) + bytes(120))
    return check(_libc.signalfd(-1, raw, os.O_NONBLOCK | os.O_CLOEXEC), "signalfd", numbers)
