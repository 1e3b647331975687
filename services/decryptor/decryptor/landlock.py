"""Keeping a directory from a process and all it starts: Landlock (landlock(7), Linux 5.13).

Landlock allows and cannot except, so everything beside the way to the directory is allowed: reading what stands next to
each directory on that way. Nothing but reading is ruled, and who is ruled cannot trace who is not.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable, Iterator

#: The same on every architecture, like all calls since 424.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3

_libc = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Whether this kernel has Landlock and it is switched on."""
    version = _libc.syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(_CREATE_RULESET_VERSION)
    )
    return bool(version > 0)


def hide(paths: Iterable[str]) -> None:
    """Keep this thread, and what it starts, from reading anything in those directories for good; OSError if refused.

    no_new_privs must be set. What comes to stand beside them later cannot be read either.
    """
    hidden = frozenset(os.path.realpath(path) for path in paths)
    handled = ctypes.create_string_buffer(struct.pack("=Q", _READ_FILE | _READ_DIR), 8)
    ruleset = _call(_CREATE_RULESET, handled, ctypes.c_size_t(8), ctypes.c_uint(0))
    try:
        for path in _beside("/", hidden):
            _allow(ruleset, path)
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def _beside(directory: str, hidden: frozenset[str]) -> Iterator[str]:
    """Yield what may be read below a directory that leads to hidden ones, as few paths as cover it."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        path = os.path.join(directory, name)
        if path in hidden:
            continue
        if any(each.startswith(f"{path}/") for each in hidden):
            yield from _beside(path, hidden)
        else:
            yield path


def _allow(ruleset: int, path: str) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # gone meanwhile
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISLNK(mode):
            return  # what it leads to is allowed where it stands, or not
        access = _READ_FILE | _READ_DIR if stat.S_ISDIR(mode) else _READ_FILE
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, fd), 12)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0))
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return int(result)
