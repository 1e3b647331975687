"""The zygote: it has imported all a shim needs, and has one forked for each pod by its template.

It takes orders from sandbox-svc on a seqpacket socket, one JSON object each:
    {"fork": {"id", "namespace", "directory", "bundles", "stream_gid", "kind", …}} -> {"forked": {"pid", "start_time"}}
        kind "shim", or "keeper" beside a foreign shim, with its "address" and the "service" it speaks, "v2" or "v3";
        "shim_cgroup" names a cgroup to join
    {"probe": {"binary"}} -> {"probed": {"path", "works"}}
or {"error": {"code", "message"}}. It owns nothing and remembers nothing: killed and restarted, no pod notices.
"""

import argparse
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from bulkhead import config, log, paths, seqpacket
from bulkhead.errors import BulkheadError, Internal, InvalidArgument, PermissionDenied
from sandbox_svc.shim import birth, cgroup, view
from sandbox_svc.shim.loop import READ, Loop
from sandbox_svc.shim.reaper import Reaper
from sandbox_svc.shim.runtime import find_binary
from sandbox_svc.shim.template import Template

logger = logging.getLogger(__name__)

#: Seconds that a probed runtime may take to answer.
PROBE_LIMIT = 10.0


class Zygote:
    """Answers orders until it is told to end."""

    def __init__(self, state: Path, template: Template) -> None:
        self._state, self._template = state, template
        self.loop = Loop()
        self.loop.open()
        self._reaper = Reaper(self.loop)
        self._reaper.begin()
        # A template that has ended can only be made by a new zygote, whose supervisor is waiting for our end.
        self.loop.watch(template.fd, READ, lambda _: self.loop.stop())
        path = paths.zygote_socket(state)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._listener = seqpacket.listen(str(path), 0o600)
        self._listener.setblocking(False)
        self._clients: dict[int, socket.socket] = {}
        self.loop.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        with suppress(BlockingIOError):
            sock, _address = self._listener.accept()
            if seqpacket.peer(sock)[1] != os.geteuid():
                sock.close()
                return
            fd = sock.fileno()
            self._clients[fd] = sock
            self.loop.watch(fd, READ, lambda _: self._ready(fd))

    def _ready(self, fd: int) -> None:
        sock = self._clients[fd]
        try:
            message, fds = seqpacket.receive(sock)
        except (OSError, InvalidArgument):
            message, fds = None, []
        for extra in fds:
            os.close(extra)
        if message is None:
            self.loop.unwatch(fd)
            del self._clients[fd]
            sock.close()
            return
        self.loop.detach(self._serve(sock, message))

    async def _serve(self, sock: socket.socket, message: dict[str, Any]) -> None:
        try:
            answer: dict[str, Any]
            if "fork" in message:
                answer = {"forked": self._fork(message["fork"])}
            elif "probe" in message:
                answer = {"probed": await self._probe(message["probe"])}
            else:
                raise InvalidArgument(f"order {sorted(message)} is not known")
        except BulkheadError as error:
            answer = {"error": {"code": error.code, "message": str(error)}}
        except (OSError, KeyError, TypeError, ValueError) as error:
            logger.exception("an order failed")
            answer = {"error": {"code": Internal.code, "message": f"{type(error).__name__}: {error}"}}
        with suppress(OSError):
            seqpacket.send(sock, answer)

    def _fork(self, order: dict[str, Any]) -> dict[str, int]:
        kind = order.get("kind", "shim")
        if kind not in ("shim", "keeper"):
            raise InvalidArgument(f"kind {kind!r} is neither shim nor keeper")
        directory = self._directory(order)
        task, stream = _sockets(directory, int(order.get("stream_gid", 0)))
        try:
            pid = self._template.fork(order, task, stream)
        finally:
            task.close()
            stream.close()
        if group := order.get("shim_cgroup"):
            cgroup.join(str(group), pid)
        return {"pid": pid, "start_time": birth.start_time(pid)}

    def _directory(self, order: dict[str, Any]) -> str:
        directory = str(order["directory"])
        if os.path.dirname(directory) != str(self._state / "s"):
            raise PermissionDenied(f"{directory} is not a shim directory of {self._state}")
        for path in (os.path.dirname(directory), directory):
            with suppress(FileExistsError):
                os.mkdir(path, 0o711)
        return directory

    async def _probe(self, order: dict[str, Any]) -> dict[str, object]:
        """Say whether a runtime can be started the way shims will start it."""
        path = find_binary(str(order["binary"]))
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            if view.needed(path):
                with view.without_unified():
                    _, ended = self._reaper.spawn(path, [path, "--version"], (null, null, null))
            else:
                _, ended = self._reaper.spawn(path, [path, "--version"], (null, null, null))
        finally:
            os.close(null)
        end = await self.loop.within(ended, PROBE_LIMIT, f"{path} --version")
        return {"path": path, "works": end.status == 0}


def _sockets(directory: str, gid: int) -> tuple[socket.socket, socket.socket]:
    task = birth.listen(f"{directory}/task")
    try:
        return task, seqpacket.listen(f"{directory}/stream", 0o660, uid=0, gid=gid)
    except BaseException:
        task.close()
        raise


def _serves(path: str) -> bool:
    try:
        seqpacket.connect(path, 1.0).close()
    except BulkheadError:
        return False
    return True


def main() -> None:
    """Run the zygote in the foreground."""
    parser = argparse.ArgumentParser(prog="bulkhead-shim-zygote", description="Fork the shims of pods.")
    parser.add_argument("--config", default="", help="the stack's configuration file")
    settings = config.load(parser.parse_args().config)
    log.setup("bulkhead-shim-zygote", settings.debug.level, settings.debug.format)
    os.umask(0o022)
    if _serves(path := str(paths.zygote_socket(settings.state))):
        raise SystemExit(f"bulkhead-shim-zygote: {path} is served by a live zygote")
    zygote = Zygote(settings.state, Template(settings.debug.level))
    zygote.loop.run()
    raise SystemExit("bulkhead-shim-zygote: the template of the shims has ended")


if __name__ == "__main__":
    main()
