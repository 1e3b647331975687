"""The system calls that Python has no name for, each named as in man2 and raising OSError."""

import ctypes
import errno
import functools
import os

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNET = 0x40000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SETPCAP = 8
CAP_SYS_CHROOT = 18
CAP_SYS_ADMIN = 21
CAP_MKNOD = 27
CAP_SETFCAP = 31

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
#: No step of the path may be a symbolic link, a mount point or lead above the directory it starts from.
RESOLVE_PLAIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV

_SYS_OPENAT2 = 437  # the same on every architecture, as all calls added since Linux 5.1
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_IDLE = 3 << 13  # IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)
_CAPABILITY_VERSION_3 = 0x20080522


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def check(result: int, what: str) -> int:
    """Return the result of a system call, or raise OSError naming the call for -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(operation: int, argument: int = 0, third: int = 0) -> int:
    """Control this process (man 2 prctl), with up to two arguments and the others 0."""
    arguments = [ctypes.c_ulong(value) for value in (argument, third, 0, 0)]
    return check(LIBC.prctl(ctypes.c_int(operation), *arguments), f"prctl({operation})")


def unshare(flags: int) -> None:
    """Leave namespaces for fresh ones (man 2 unshare)."""
    check(LIBC.unshare(ctypes.c_int(flags)), "unshare")


def sync_file_range(fd: int, offset: int = 0, count: int = 0) -> None:
    """Begin to write a file's dirty pages to disk without waiting (SYNC_FILE_RANGE_WRITE); 0 bytes: to its end."""
    flags, start, length = ctypes.c_uint(2), ctypes.c_int64(offset), ctypes.c_int64(count)
    check(LIBC.sync_file_range(ctypes.c_int(fd), start, length, flags), "sync_file_range")


def syncfs(fd: int) -> None:
    """Write the file system that fd is on to disk (man 2 syncfs)."""
    check(LIBC.syncfs(ctypes.c_int(fd)), "syncfs")


@functools.lru_cache(maxsize=8)
def _how(flags: int, resolve: int) -> _OpenHow:
    return _OpenHow(flags | os.O_CLOEXEC, 0, resolve)


def openat2(directory: int, path: bytes, flags: int, resolve: int = RESOLVE_PLAIN) -> int:
    """Open what is there (man 2 openat2); the path is relative, b"." the directory itself."""
    how = _how(flags, resolve)
    while True:
        result = LIBC.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory), path, ctypes.byref(how), ctypes.c_size_t(24)
        )
        # EAGAIN: something was renamed anywhere in the system while RESOLVE_BENEATH looked at "..".
        if result != -1 or ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            return check(result, "openat2")


def capset(capabilities: int) -> None:
    """Make a bit set the permitted and effective capabilities (man 2 capset), with none inheritable."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    check(LIBC.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def drop_bounding_set(keep: int, among: int = (1 << 64) - 1) -> None:
    """Take every capability outside the bit set `keep` out of the bounding set (needs CAP_SETPCAP).

    It holds none outside the bit set `among`, which saves asking the kernel about those.
    """
    for capability in range(64):
        if (among & ~keep) >> capability & 1:
            try:
                prctl(PR_CAPBSET_DROP, capability)
            except OSError as error:
                if error.errno == errno.EINVAL:  # past the last one this kernel knows
                    return
                raise


def idle_io_priority() -> None:
    """Let this process reach the disk only when nobody else wants it (man 2 ioprio_set)."""
    number = _SYS_IOPRIO_SET[os.uname().machine]
    process, this = 1, 0
    check(
        LIBC.syscall(ctypes.c_long(number), ctypes.c_int(process), ctypes.c_int(this), ctypes.c_int(_IOPRIO_IDLE)),
        "ioprio_set",
    )
