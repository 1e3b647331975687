"""Unix sockets seen from outside: whether somebody listens."""

import errno
import socket

_SOMEBODY = frozenset({errno.EAGAIN, errno.EPROTOTYPE, errno.EACCES, errno.EPERM, errno.EINTR, errno.EINPROGRESS})


def is_live(path: str, timeout: float = 1.0) -> bool:
    """Whether a process listens on that unix socket, of whatever type.

    A full backlog (EAGAIN, or no answer within `timeout` seconds), a socket of another type (EPROTOTYPE) and one
    that is not ours to use (EACCES) all count as live; a missing or abandoned one, and a path longer than sockets
    can have, do not.
    """
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(timeout)
    try:
        probe.connect(path)
    except OSError as error:
        return isinstance(error, TimeoutError) or error.errno in _SOMEBODY
    finally:
        probe.close()
    return True
