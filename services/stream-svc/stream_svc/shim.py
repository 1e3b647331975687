"""stream-svc's end of a session with a shim: one SEQPACKET connection that redeems a ticket and then controls it.

Messages are JSON objects, descriptors come beside them (bulkhead.seqpacket). Closing the connection tells the shim that
the client is gone: it kills what was exec'd.
"""

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bulkhead import paths, seqpacket
from bulkhead.errors import BulkheadError, Internal, NotFound, Unavailable, from_code

#: Seconds that a shim may take to answer a ticket, and to start a process or connect to a port.
REDEEM_LIMIT = 10.0
START_LIMIT = 60.0
_GONE = "the pod's shim has closed the session"


@dataclass(frozen=True)
class Ticket:
    """What was redeemed: kind is "exec", "attach" or "port_forward"."""

    kind: str
    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Exit:
    """How the process, or the container that was attached to, ended."""

    code: int
    message: str = ""


@dataclass(frozen=True)
class Size:
    """A terminal's size in characters."""

    width: int
    height: int


class Session:
    """One session; made by redeem(), ended by close()."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._answers: dict[str, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        #: Resolves to the Exit, or to Unavailable if the shim hangs up first.
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._failure: BulkheadError | None = None
        self._connects = 0
        self._listener = asyncio.create_task(self._listen(), name="shim")
        self.ticket = Ticket("")

    @classmethod
    async def redeem(cls, state: Path, token: str) -> Self:
        """Connect to the shim that the token names and redeem it there.

        NotFound if there is no such shim or ticket; other errors are the shim's own. The token's form must have been
        checked: it becomes part of a path.
        """
        session = cls(await _connect(str(paths.stream_socket(state, token))))
        try:
            answer, fds = await session._ask("ok", {"redeem": token}, REDEEM_LIMIT)
            _close(fds)
            session.ticket = _ticket(answer)
        except BaseException:
            session.close()
            raise
        return session

    async def begin(self, size: Size | None) -> dict[str, int]:
        """Start the process or the attachment; returns descriptors by name: stdin, stdout, stderr, or tty."""
        wanted = {"begin": {"width": size.width, "height": size.height} if size else {}}
        answer, fds = await self._ask("started", wanted, START_LIMIT)
        names = answer.get("fds")
        if (
            not isinstance(names, list)
            or len(names) != len(fds)
            or not set(names) <= {"stdin", "stdout", "stderr", "tty"}
        ):
            _close(fds)
            raise Internal(f"the shim named {names!r} and sent {len(fds)} descriptors")
        return dict(zip(names, fds, strict=True))

    async def resize(self, size: Size) -> None:
        """Set the size of the session's terminal."""
        await self._send({"resize": {"width": size.width, "height": size.height}})

    async def connect(self, port: int) -> int:
        """Return a socket connected to the port inside the pod; the shim's reason if it could not be."""
        self._connects += 1
        ident = self._connects
        answer, fds = await self._ask(f"connect {ident}", {"connect": {"id": ident, "port": port}}, START_LIMIT)
        if len(fds) != 1:
            _close(fds)
            raise Internal(f"the shim sent {len(fds)} descriptors for {answer!r}, expected one")
        return fds[0]

    def close(self) -> None:
        """Hang up; a second call does nothing."""
        self._listener.cancel()
        self._fail(Unavailable(_GONE))
        self._unwatch()
        self._sock.close()

    def _unwatch(self) -> None:
        # Before the socket is closed and never again after it: its number may be another's by then.
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)

    async def _ask(self, key: str, message: dict[str, Any], limit: float) -> tuple[dict[str, Any], list[int]]:
        if self._failure is not None:
            raise self._failure
        future = self._answers[key] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(limit):
                await self._send(message)
                # Waited for, not awaited: a cancelled wait leaves the future, and what came with it, to be closed.
                await asyncio.wait({future})
            answer: tuple[dict[str, Any], list[int]] = future.result()
            return answer
        except TimeoutError as error:
            _close_unclaimed(future)
            raise Unavailable(f"the pod's shim did not answer within {limit:g} s") from error
        except asyncio.CancelledError:
            _close_unclaimed(future)
            raise
        finally:
            self._answers.pop(key, None)

    async def _send(self, message: dict[str, Any]) -> None:
        while True:
            try:
                seqpacket.send(self._sock, message)
            except BlockingIOError:
                # The shim has not read the last messages yet.
                await asyncio.sleep(0.01)
            except OSError as error:
                raise Unavailable(_GONE) from error
            else:
                return

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._sock, readable.set)
        try:
            while True:
                readable.clear()
                try:
                    message, fds = seqpacket.receive(self._sock)
                except BlockingIOError:
                    await readable.wait()
                    continue
                if message is None:
                    break
                self._accept(message, fds)
            self._fail(Unavailable(_GONE))
        except (OSError, BulkheadError) as error:
            self._fail(Unavailable(f"{_GONE}: {error}"))
        finally:
            self._unwatch()

    def _accept(self, message: dict[str, Any], fds: list[int]) -> None:
        """Hand a message to whoever waits for it; descriptors that nobody waits for are closed."""
        taken = False
        for name, content in message.items():
            body = content if isinstance(content, dict) else {}
            if name == "exit":
                if not self.exited.done():
                    self.exited.set_result(Exit(_integer(body.get("code"), 255), str(body.get("message") or "")))
            elif name in ("ok", "started"):
                taken |= self._answer(name, body, fds)
            elif name == "connected":
                taken |= self._answer(f"connect {body.get('id')}", body, fds)
            elif name == "failed":
                self._refuse(f"connect {body.get('id')}", Unavailable(str(body.get("message") or "connection failed")))
            elif name == "error":
                error = from_code(_integer(body.get("code"), 13), str(body.get("message") or "the shim gave no reason"))
                # After the start it is the reason for which the shim is about to hang up.
                if not (self._refuse("ok", error) or self._refuse("started", error)):
                    self._fail(error)
        if not taken:
            _close(fds)

    def _answer(self, key: str, body: dict[str, Any], fds: list[int]) -> bool:
        future = self._answers.get(key)
        if future is None or future.done():
            return False
        future.set_result((body, fds))
        return True

    def _refuse(self, key: str, error: BulkheadError) -> bool:
        future = self._answers.get(key)
        if future is None or future.done():
            return False
        future.set_exception(error)
        return True

    def _fail(self, error: BulkheadError) -> None:
        """Note that nothing more will come, and tell everyone who waits; the first reason stays."""
        self._failure = self._failure or error
        for key in list(self._answers):
            self._refuse(key, error)
        if not self.exited.done():
            self.exited.set_exception(error)
            # Not everyone waits for the exit: the exception counts as seen.
            self.exited.exception()


async def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        for _ in range(50):
            try:
                sock.connect(path)
            except BlockingIOError:
                # The shim's backlog is full: it will accept in a moment.
                await asyncio.sleep(0.1)
            else:
                return sock
        raise Unavailable("the pod's shim accepts no sessions")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        sock.close()
        raise NotFound("unknown ticket: there is no such pod any more") from error
    except OSError as error:
        sock.close()
        raise Internal(f"cannot reach the pod's shim at {path}: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise


def _close_unclaimed(future: "asyncio.Future[tuple[dict[str, Any], list[int]]]") -> None:
    """Close the descriptors of an answer that came as its asker gave up."""
    if not future.cancel() and not future.cancelled() and future.exception() is None:
        _close(future.result()[1])


def _ticket(body: dict[str, Any]) -> Ticket:
    ports = body.get("ports")
    return Ticket(
        kind=str(body.get("kind")),
        tty=bool(body.get("tty")),
        stdin=bool(body.get("stdin")),
        stdout=bool(body.get("stdout")),
        stderr=bool(body.get("stderr")),
        ports=tuple(port for port in ports if isinstance(port, int)) if isinstance(ports, list) else (),
    )


def _integer(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
