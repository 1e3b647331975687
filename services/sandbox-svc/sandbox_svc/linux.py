"""The kernel calls the standard library lacks, each named and shaped as in section 2 of the manual.

Nothing else in sandbox-svc uses ctypes. Every call raises OSError with the errno and the path (or namespace) it was
about; every call lets other threads run meanwhile. Calls that change the calling thread alone (setns, unshare) are
for threads that end afterwards: the server's own threads must stay as they are.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

CLONE_NEWNS = 0x20000
CLONE_NEWNET = 0x40000000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

RESOLVE_NO_XDEV = 0x1
RESOLVE_NO_MAGICLINKS = 0x2
RESOLVE_NO_SYMLINKS = 0x4
RESOLVE_BENEATH = 0x8
RESOLVE_IN_ROOT = 0x10

OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4

MOUNT_ATTR_RDONLY, MOUNT_ATTR_IDMAP = 0x1, 0x100000

PR_SET_CHILD_SUBREAPER = 36

#: System call numbers above 423 are the same on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    text, number = ctypes.c_char_p, ctypes.c_ulong
    libc.mount.argtypes = [text, text, text, number, text]
    libc.umount2.argtypes = [text, ctypes.c_int]
    libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
    libc.unshare.argtypes = [ctypes.c_int]
    libc.prctl.argtypes = [ctypes.c_int, number, number, number, number]
    libc.syscall.restype = ctypes.c_long
    return libc


def check(result: int, call: str, target: object) -> int:
    """Return a system call's result, or raise OSError for -1: `[Errno 16] mount: Device or resource busy: '/x'`."""
    if result != -1:
        return result
    errno = ctypes.get_errno()
    raise OSError(errno, f"{call}: {os.strerror(errno)}", str(target))


def _bytes(text: str | os.PathLike[str] | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def mount(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    fstype: str | None = None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """Mount; data longer than 4095 bytes is refused here, because the kernel would cut it without a word."""
    options = _bytes(data)
    if options is not None and len(options) > 4095:
        raise OSError(7, f"mount: options of {len(options)} bytes, the kernel takes 4095", str(target))
    check(_libc().mount(_bytes(source), _bytes(target), _bytes(fstype), flags, options), "mount", target)


def umount2(target: str | os.PathLike[str], flags: int = 0) -> None:
    """Unmount; MNT_DETACH hides the mount at once and ends it when its last user is gone."""
    check(_libc().umount2(_bytes(target), flags), "umount2", target)


def setns(fd: int, nstype: int) -> None:
    """Move the calling thread into the namespace behind fd."""
    check(_libc().setns(fd, nstype), "setns", f"fd {fd}")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces of its own."""
    check(_libc().unshare(flags), "unshare", f"{flags:#x}")


def prctl(option: int, argument: int = 0) -> int:
    """Operate on the calling process or thread."""
    return check(_libc().prctl(option, argument, 0, 0, 0), "prctl", option)


def _syscall(number: int, *arguments: object) -> int:
    call: Callable[..., int] = _libc().syscall
    return call(ctypes.c_long(number), *arguments)


def openat2(path: str | os.PathLike[str], flags: int, *, dirfd: int = AT_FDCWD, mode: int = 0, resolve: int = 0) -> int:
    """Open a path under the rules of resolve and return the descriptor, closed on exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    return check(_syscall(_SYS_OPENAT2, dirfd, _bytes(path), ctypes.byref(how), size), "openat2", path)


def open_tree(path: str | os.PathLike[str], flags: int = OPEN_TREE_CLONE, *, dirfd: int = AT_FDCWD) -> int:
    """Return a descriptor of a mount; with OPEN_TREE_CLONE of a detached copy of it."""
    flags |= OPEN_TREE_CLOEXEC
    return check(_syscall(_SYS_OPEN_TREE, dirfd, _bytes(path), ctypes.c_uint(flags)), "open_tree", path)


def move_mount(fd: int, target: str | os.PathLike[str], *, dirfd: int = AT_FDCWD) -> None:
    """Attach the mount behind fd (from open_tree) at target."""
    flags = ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH)
    check(_syscall(_SYS_MOVE_MOUNT, fd, b"", dirfd, _bytes(target), flags), "move_mount", target)


def mount_setattr(
    fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0, userns_fd: int = 0, flags: int = AT_EMPTY_PATH
) -> None:
    """Change attributes of the mount behind fd; with AT_RECURSIVE of all below it, too.

    MOUNT_ATTR_IDMAP with userns_fd maps its owners through that user namespace (detached mounts only).
    """
    attr = _MountAttr(set, clear, propagation, userns_fd)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    result = _syscall(_SYS_MOUNT_SETATTR, fd, b"", ctypes.c_uint(flags), ctypes.byref(attr), size)
    check(result, "mount_setattr", f"fd {fd}")


def fsopen(fstype: str) -> int:
    """Return a descriptor that configures a new file system of that type (fsopen(2))."""
    return check(_syscall(_SYS_FSOPEN, _bytes(fstype), ctypes.c_uint(_FSOPEN_CLOEXEC)), "fsopen", fstype)


def fsmount(fd: int) -> int:
    """Create what fsopen configures and return its mount, which stands at no path (fsmount(2))."""
    check(_syscall(_SYS_FSCONFIG, fd, ctypes.c_uint(_FSCONFIG_CMD_CREATE), None, None, 0), "fsconfig", fd)
    return check(_syscall(_SYS_FSMOUNT, fd, ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(0)), "fsmount", fd)
