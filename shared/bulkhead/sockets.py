"""Unix sockets seen from outside: whether somebody listens."""

import errno
import socket

_NOBODY = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ENOTSOCK})


def is_live(path: str, timeout: float = 1.0) -> bool:
    """Whether a process listens on that unix socket, of whatever type.

    A full backlog (EAGAIN, or no answer within `timeout` seconds), a socket of another type (EPROTOTYPE) and one
    that is not ours to use (EACCES) all count as live: only a missing or abandoned socket does not.
    """
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(timeout)
    try:
        probe.connect(path)
    except OSError as error:
        return error.errno not in _NOBODY
    finally:
        probe.close()
    return True
