"""JSON messages with file descriptors over SOCK_SEQPACKET unix sockets.

One datagram is one message: a JSON object of at most 64 KiB and up to 16 descriptors (SCM_RIGHTS). Used between
sandbox-svc and the zygote, stream-svc and the shims, image-svc and its unpack helper.
"""

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from bulkhead.errors import InvalidArgument, Unavailable

MESSAGE_LIMIT = 64 * 1024
DESCRIPTOR_LIMIT = 16


def listen(path: str, mode: int = 0o600, *, backlog: int = 128, uid: int = -1, gid: int = -1) -> socket.socket:
    """Bind a listening socket with that mode and owner, replacing whatever file was there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        if os.path.lexists(path):
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, mode)
        if uid >= 0 or gid >= 0:
            os.chown(path, uid, gid)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: str, timeout: float | None = 5.0) -> socket.socket:
    """Connect within `timeout` seconds, which stays the socket's time-out; Unavailable names the path."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sock.settimeout(timeout)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Unavailable(f"{path}: {error.strerror or error}") from error
    return sock


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message and its descriptors, which stay open here."""
    data = json.dumps(message).encode()
    if len(data) > MESSAGE_LIMIT:
        raise InvalidArgument(f"message of {len(data)} bytes, at most {MESSAGE_LIMIT} are allowed")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message and its descriptors (close-on-exec, the caller's to close); (None, []) at the end.

    A message that is cut, not JSON or not an object raises InvalidArgument after its descriptors were closed.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        MESSAGE_LIMIT + 1, socket.CMSG_SPACE(DESCRIPTOR_LIMIT * 4), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.extend(array.array("i", payload[: len(payload) - len(payload) % 4]))
    if not data:
        _close(fds)
        return None, []
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise InvalidArgument("message or descriptor list longer than allowed")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise InvalidArgument(f"message is a JSON {type(message).__name__}, expected an object")
    except (ValueError, RecursionError) as error:  # nested deeper than the parser goes
        _close(fds)
        raise InvalidArgument(f"message is not JSON: {error}") from error
    except InvalidArgument:
        _close(fds)
        raise
    return message, fds


def peer(sock: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the process at the other end (SO_PEERCRED)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    return pid, uid, gid


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
