"""The kernel calls of the launcher, named as in section 2 of the manual. All raise OSError."""

import ctypes
import os
from pathlib import Path

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 0x1, 0x2, 0x4, 0x8, 0x20
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 0x1000, 0x4000, 0x40000, 0x80000
PR_SET_PDEATHSIG, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 23, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
MNT_DETACH = 0x2
#: The same on every architecture, like all calls since 424.
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_AT_FDCWD, _OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1, 0o2000000, 0x4
_CAPABILITY_VERSION_3 = 0x20080522

_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
#: capabilities(7), in the order of the kernel's numbers.
CAPABILITIES = {name: number for number, name in enumerate(_NAMES.split())}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by the flags for new ones."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system, or change a mount's flags or propagation."""
    arguments = [os.fsencode(text) if text else None for text in (source, target, kind)]
    _check(_libc.mount(*arguments, flags, data.encode() or None), f"mount {kind or source} on {target}")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind a descriptor, which must be of that kind (CLONE_NEW*)."""
    _check(_libc.setns(fd, kind), "setns")


def unmount(target: str) -> None:
    """Take away what is mounted there, for new lookups at once."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount2 {target}")


def open_tree(path: str) -> int:
    """Return a copy of the mount at that path as a descriptor, mounted nowhere (open_tree(2), Linux 5.2)."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
    arguments = (ctypes.c_long(_OPEN_TREE), ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(path)), flags)
    return _check(_libc.syscall(*arguments), f"open_tree {path}")


def move_mount(tree: int, target: str) -> None:
    """Mount what open_tree returned (move_mount(2))."""
    here = (ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(target)))
    arguments = (ctypes.c_long(_MOVE_MOUNT), ctypes.c_int(tree), ctypes.c_char_p(b""), *here)
    _check(_libc.syscall(*arguments, ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)), f"move_mount to {target}")


def prctl(option: int, argument: int = 0) -> int:
    """Change or read an attribute of this process."""
    zero = ctypes.c_ulong(0)
    return _check(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero), f"prctl({option}, {argument})")


def prctl_name(option: int, name: str) -> None:
    """Set the name of this thread, 15 bytes of it."""
    _check(_libc.prctl(option, ctypes.c_char_p(name.encode()[:15])), f"prctl({option}, {name!r})")


def capset(permitted: int) -> None:
    """Set permitted and effective capabilities to that bit set, and the inheritable ones to none."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _check(_libc.capset(header, data), "capset")


def drop_bounding_set(keep: int) -> None:
    """Take every capability that this kernel knows and `keep` lacks out of the bounding set, for good."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in range(last + 1):
        if not keep >> number & 1 and prctl(PR_CAPBSET_READ, number):
            prctl(PR_CAPBSET_DROP, number)
