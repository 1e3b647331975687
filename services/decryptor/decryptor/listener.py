"""The socket of the metrics face, which a process without a network must be given."""

import os
import socket
from collections.abc import MutableMapping

FIRST_FD = 3


def inherited(environ: MutableMapping[str, str]) -> socket.socket | None:
    """Return the listening socket passed as descriptor 3 (sd_listen_fds(3)), or None if none was.

    The variables are taken out of the environment, so that no child believes them.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit() or int(count) < 1:
        return None
    listener = socket.socket(fileno=FIRST_FD)
    listener.set_inheritable(False)
    return listener
