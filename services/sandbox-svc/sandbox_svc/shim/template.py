"""The template: a quiet process with a rehearsed shim in its memory, of which every pod gets a copy.

A page stays shared between template and shims until one of them writes to it, and Python writes a reference count
wherever it looks. So the template does next to nothing between two forks: it receives sockets, forks, waits. The
zygote, which does more, is another process.
"""

import ctypes
import json
import os
import socket
import struct
from typing import Any, NoReturn

from bulkhead import heap
from bulkhead.errors import Unavailable
from sandbox_svc.shim import sealed
from sandbox_svc.shim.birth import quiet
from sandbox_svc.shim.diary import Diary
from sandbox_svc.shim.rehearsal import rehearse
from sandbox_svc.shim.shim import Settings, Shim

#: Seconds that a fork may take.
LIMIT = 10.0

#: fork(2) itself. os.fork would run the hooks of threading, logging and random in the child, which put right what
#: other threads may have left; here there are none, and the pages that the hooks touch cost each pod 0.6 MB.
_fork = ctypes.PyDLL(None).fork


class Template:
    """The zygote's end."""

    def __init__(self, level: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(LIMIT)
        # Rehearsed before this fork, not after: zygote and template share what it has written, 6 MB less in all.
        rehearse()
        sealed.prepare()
        heap.settle()
        if os.fork() == 0:
            self._channel.close()
            _serve(theirs, level)
        theirs.close()

    @property
    def fd(self) -> int:
        """Readable when the template has ended."""
        return self._channel.fileno()

    def fork(self, order: dict[str, Any], task: socket.socket, stream: socket.socket) -> int:
        """Have a shim forked that listens on these sockets, and return its pid."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("2i", task.fileno(), stream.fileno()))]
        try:
            self._channel.sendmsg([json.dumps(order).encode()], rights)
            raw = self._channel.recv(16)
        except OSError as error:
            raise Unavailable(f"the template of the shims does not answer: {error}") from error
        if not raw:
            raise Unavailable("the template of the shims has ended")
        return int(raw)


def _serve(channel: socket.socket, level: str) -> NoReturn:
    status = 1
    try:
        diary = Diary()
        diary.take_logs(level)
        os.setsid()
        shim = Shim()
        quiet(fd for fd in (channel.fileno(), sealed.crun.fd, *shim.descriptors) if fd >= 0)
        heap.settle()
        _fork_for_ever(channel, shim, diary)
        status = 0
    finally:
        os._exit(status)


def _fork_for_ever(channel: socket.socket, shim: Shim, diary: Diary) -> None:
    while True:
        data, ancillary, _, _ = channel.recvmsg(65536, 64, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return  # the zygote has ended
        task, stream = struct.unpack("2i", ancillary[0][2])
        middle = _fork()
        if middle == 0:
            _orphan(channel, shim, diary, data, task, stream)
        os.waitpid(middle, 0)
        os.close(task)
        os.close(stream)


def _orphan(channel: socket.socket, shim: Shim, diary: Diary, order: bytes, task: int, stream: int) -> NoReturn:
    """Fork once more, so that the shim is nobody's child here, and let it live in a session of its own."""
    status = 1
    try:
        os.setsid()
        child = _fork()
        if child:
            channel.send(b"%d" % child)
        else:
            os.close(channel.fileno())
            _live(shim, diary, json.loads(order), task, stream)
        status = 0
    finally:
        # Nothing of the parent's may run here: its destructors would close numbers that are in use anew.
        os._exit(status)


def _live(shim: Shim, diary: Diary, order: dict[str, Any], task: int, stream: int) -> None:
    directory = order["directory"]
    diary.begin(f"{directory}/log")
    shim.begin(
        Settings(
            namespace=order["namespace"],
            task=socket.socket(fileno=task),
            stream=socket.socket(fileno=stream),
            console_base=f"{directory}/c",
            foreign=order.get("address", "") if order.get("kind") == "keeper" else "",
            foreign_version=order.get("service", "v3"),
            directory=directory,
            bundles=order.get("bundles", ""),
            leave_behind=(f"{directory}/task", f"{directory}/stream", f"{directory}/log", directory),
        )
    )
    shim.run()
