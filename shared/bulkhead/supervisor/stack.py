"""The stack while it runs: what is started, restarted, stopped, and in which order."""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

from bulkhead.launch.plan import Plan
from bulkhead.supervisor.child import Backoff, Child
from bulkhead.supervisor.loop import Loop
from bulkhead.supervisor.relay import Relay
from bulkhead.supervisor.roster import STOP, ZYGOTE, Entry

logger = logging.getLogger("bulkhead.supervisor")

#: Seconds that the services of one step have to end after SIGTERM. The slowest is sandbox-svc, which gives calls,
#: removals and plugins 4.5 of them.
STOP_PATIENCE = 6.0
#: Deaths before the stack was ever ready after which starting is given up.
START_ATTEMPTS = 5
_READ = 64 * 1024


class Stack:
    """Starts every service, and starts again what ends, until stop() is called."""

    def __init__(self, loop: Loop, entries: list[Entry], style: str, give_up: Callable[[str], None]) -> None:
        self._loop, self._style, self._give_up = loop, style, give_up
        self._entries = {entry.name: entry for entry in entries}
        self._backoffs = {entry.name: Backoff() for entry in entries}
        self._children: dict[str, Child] = {}
        self._relays: dict[str, Relay] = {}
        self._steps: list[tuple[str, ...]] = []
        self._told: set[str] = set()
        self._on_stopped: Callable[[], None] = lambda: None
        self.ready = self.stopping = False
        #: Called with the name of a service each time it was started.
        self.on_start: Callable[[str], None] = lambda _: None

    def start(self, name: str) -> None:
        """Start a service; one that does not start counts as dead at once."""
        if self.stopping or name in self._children:
            return
        entry = self._entries[name]
        try:
            child = Child(name, entry.plan)
        except OSError as error:
            delay = self._backoffs[name].after(0)
            logger.error("%s cannot be started: %s; tried again in %g s", name, error, delay)
            self._loop.after(delay, partial(self.start, name))
            return
        self._children[name] = child
        self._relays[name] = Relay(name, self._style, _write_out)
        assert child.output is not None
        self._loop.watch(child.output, partial(self._read, child))
        self._loop.watch(child.pidfd, partial(self._ended, child))
        self.on_start(name)

    def restart(self, name: str) -> None:
        """End a service, which is then started again."""
        if child := self._children.get(name):
            child.signal(signal.SIGTERM)

    def running(self, name: str) -> tuple[int, float] | None:
        """Return pid of a service and the seconds it has run; None if it does not."""
        child = self._children.get(name)
        return (child.pid, child.lived) if child else None

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a service that runs."""
        if child := self._children.get(name):
            child.signal(number)

    def stop(self, stopped: Callable[[], None]) -> None:
        """Stop the services step by step and call `stopped` at the end; a second call kills what is left."""
        if self.stopping:
            for child in self._children.values():
                child.kill_group()
            return
        self.stopping, self._on_stopped = True, stopped
        self._steps = [tuple(names) for names in STOP]
        self._next_step()

    def _next_step(self) -> None:
        while self._steps:
            running = [self._children[name] for name in self._steps[0] if name in self._children]
            # Once each: a second SIGTERM asks a service to end at once.
            for child in running:
                if child.name not in self._told:
                    self._told.add(child.name)
                    child.signal(signal.SIGTERM)
                    self._loop.after(STOP_PATIENCE, partial(self._lose_patience, child))
            if running:
                return
            self._steps.pop(0)
        self._on_stopped()

    def _lose_patience(self, child: Child) -> None:
        if self._children.get(child.name) is child:
            logger.warning("%s did not end within %g s and is killed", child.name, STOP_PATIENCE)
            child.kill_group()

    def _read(self, child: Child) -> None:
        """Read what has come, once; at the end of the pipe close it."""
        if child.output is None:  # closed by a callback of the same turn
            return
        try:
            data = os.read(child.output, _READ)
        except BlockingIOError:
            return
        if data:
            child.last_lines.extend(self._relays[child.name].feed(data))
        else:
            self._close(child)

    def _drain(self, child: Child) -> None:
        """Read what is left in the pipe; something that the program started may hold the other end open."""
        while child.output is not None:
            try:
                data = os.read(child.output, _READ)
            except BlockingIOError:
                data = b""
            if data:
                child.last_lines.extend(self._relays[child.name].feed(data))
            else:
                self._close(child)

    def _close(self, child: Child) -> None:
        child.last_lines.extend(self._relays[child.name].end())
        if child.output is not None:
            self._loop.forget(child.output)
            child.end_output()

    def _ended(self, child: Child) -> None:
        self._drain(child)
        self._loop.forget(child.pidfd)
        lived = child.lived
        how = child.reap()
        del self._children[child.name]
        if self.stopping:
            self._next_step()
            return
        backoff = self._backoffs[child.name]
        delay = backoff.after(lived)
        said = f": {child.last_lines[-1]}" if lived < 2 and child.last_lines else ""
        if not self.ready and backoff.failures >= START_ATTEMPTS:
            self._give_up(f"{child.name} does not start: it {how}{said}")
            return
        logger.error(
            "%s %s after %.1f s and is started again in %g s%s",
            child.name,
            how,
            lived,
            delay,
            f" (start {backoff.failures} in a row that failed){said}" if backoff.failures > 1 else "",
        )
        self._loop.after(delay, partial(self.start, child.name))


class ZygoteKeeper:
    """Starts the zygote, or adopts the one that an earlier stack left, and starts it again if it ends."""

    def __init__(
        self, loop: Loop, entry: Entry, find: Callable[[], int], style: str, give_up: Callable[[str], None]
    ) -> None:
        self._loop, self._entry, self._find, self._give_up = loop, entry, find, give_up
        self._relay = Relay(ZYGOTE, style, _write_out)
        self._backoff = Backoff()
        self._log = entry.socket.with_name("log")
        self._child: Child | None = None
        self._pid, self._pidfd = 0, -1
        self._offset = 0
        self.ended = self.ready = False

    def start(self) -> None:
        """Adopt the zygote if one listens, else start one in a session of its own."""
        if self.ended:
            return
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._offset = os.fstat(fd).st_size
            pid = self._find()
            if pid:
                logger.info("the shim zygote of an earlier start goes on (pid %d)", pid)
                self._pid, self._pidfd = pid, os.pidfd_open(pid)
            else:
                self._child = Child(ZYGOTE, self._entry.plan, detached=fd)
                self._pid, self._pidfd = self._child.pid, self._child.pidfd
        finally:
            os.close(fd)
        self._loop.watch(self._pidfd, self._died)

    def follow_log(self) -> None:
        """Hand on what the zygote has written since the last time."""
        try:
            with open(self._log, "rb") as file:
                file.seek(self._offset)
                data = file.read(_READ)
        except FileNotFoundError:
            return
        self._offset += len(data)
        self._relay.feed(data)

    def release(self) -> int:
        """Watch it no longer and return its pid, 0 if there is none; it goes on."""
        self.ended = True
        if self._pidfd >= 0:
            self._loop.forget(self._pidfd)
            self._pidfd = -1
        return self._pid

    def _died(self) -> None:
        self._loop.forget(self._pidfd)
        lived, how = 0.0, "ended"
        if self._child is not None:
            lived, how = self._child.lived, self._child.reap()
            self._child = None
        else:
            os.close(self._pidfd)
        self._pid, self._pidfd = 0, -1
        self.follow_log()
        delay = self._backoff.after(lived)
        if not self.ready and self._backoff.failures >= START_ATTEMPTS:
            self._give_up(f"the shim zygote does not start: it {how}")
            return
        logger.error("the shim zygote %s and is started again in %g s; running pods go on", how, delay)
        self._loop.after(delay, self.start)


def with_listener(entry: Entry, fd: int) -> Entry:
    """Return the entry with a listening socket handed to its program."""
    plan: Plan = dataclasses.replace(entry.plan, listen_fd=fd)
    return dataclasses.replace(entry, plan=plan)


def _write_out(line: bytes) -> None:
    # A terminal that has gone away must not take the stack with it.
    with contextlib.suppress(OSError):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
