"""The helper's one thread: takes orders, starts workers, and waits for whatever happens first."""

import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable

from bulkhead import seqpacket
from bulkhead.errors import (
    Aborted,
    BulkheadError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
)
from image_svc.unpack.operations import Answer, Operations, Request, Running
from image_svc.unpack.protocol import DiskFull
from image_svc.unpack.worker import Step, Worker

logger = logging.getLogger(__name__)

#: Operations at a time; beyond that ResourceExhausted.
MAX_JOBS = 64
#: Seconds from a removal on in which others may follow, so that one worker does for all of them.
GATHER_SECONDS = 0.2
#: Seconds to wait at the end for workers that were killed.
STOP_SECONDS = 3.0


class Job:
    """One operation under way: its steps, the worker of the present one, and when that must be done."""

    def __init__(self, running: Running, request: Request, connection: socket.socket) -> None:
        """Wrap an operation that has not started."""
        self.running = running
        self.request = request
        self.connection = connection
        self.snapshot = request.fields.get("name")
        self.worker: Worker | None = None
        self.deadline = 0.0
        #: Why the worker was killed, which is then the operation's error.
        self.reason: BulkheadError | None = None
        #: True once nobody waits for the answer.
        self.gone = False

    def stop(self, reason: BulkheadError) -> None:
        """Kill the worker; its end ends the operation."""
        self.reason = self.reason or reason
        if self.worker is not None:
            self.worker.kill()


class Server:
    """Serves image-svc (user id `client`, and root) on a listening SOCK_SEQPACKET socket."""

    def __init__(self, listener: socket.socket, operations: Operations, client: int) -> None:
        """Take over the listener."""
        self._listener = listener
        self._operations = operations
        self._allowed = {0, client}
        self._selector = selectors.DefaultSelector()
        self._jobs: dict[socket.socket, Job] = {}
        self._remover: Worker | None = None
        #: When to look for what was thrown away, None if nothing was since the last look.
        self._trash_due: float | None = time.monotonic()
        self._stopping = False
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then kill the workers and return."""
        here, there = socket.socketpair()
        for end in (here, there):
            end.setblocking(False)
        self._selector.register(here, selectors.EVENT_READ, lambda: here.recv(64))
        previous = signal.set_wakeup_fd(there.fileno())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing to reload
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            while not self._stopping:
                self._empty_trash()
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                self._check_deadlines()
        finally:
            signal.set_wakeup_fd(previous)
            self._kill_all()
            here.close()
            there.close()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _patience(self) -> float | None:
        """Return the seconds until the next deadline, None without any."""
        deadlines = [job.deadline for job in self._jobs.values() if job.worker and not job.reason]
        if self._trash_due is not None and self._remover is None:
            deadlines.append(self._trash_due)
        return max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for job in self._jobs.values():
            if job.worker and not job.reason and now >= job.deadline:
                operation = job.request.fields.get("op")
                job.stop(DeadlineExceeded(f"{operation} of snapshot {job.snapshot} took longer than it may"))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            logger.warning("accept: %s", error)
            return
        connection.setblocking(False)
        _, uid, _ = seqpacket.peer(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection, uid))

    def _receive(self, connection: socket.socket, uid: int) -> None:
        """Take one message: an order, or while one is carried out, a hang-up."""
        try:
            message, descriptors = seqpacket.receive(connection)
        except (BulkheadError, OSError) as error:
            logger.warning("bad message: %s", error)
            message, descriptors = None, []
        if message is None or connection in self._jobs:
            for fd in descriptors:
                os.close(fd)
            self._hang_up(connection)
            return
        request = Request(message, descriptors)
        if uid in self._allowed:
            self._begin(connection, request)
            return
        logger.warning("refused an order of user %d", uid)
        self._close_descriptors(request)
        self._reply(connection, PermissionDenied(f"user {uid} may not use the unpack helper"))
        self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        job = self._jobs.get(connection)
        self._selector.unregister(connection)
        if job is None:
            connection.close()
        else:
            job.gone = True
            job.stop(Cancelled("image-svc hung up"))

    def _begin(self, connection: socket.socket, request: Request) -> None:
        operation = self._operations.by_name.get(str(request.fields.get("op")))
        try:
            if operation is None:
                raise InvalidArgument(f"operation {request.fields.get('op')!r} is not known")
            if len(self._jobs) >= MAX_JOBS:
                raise ResourceExhausted(f"{MAX_JOBS} operations are under way already")
            self._claim(request)
        except BulkheadError as error:
            self._close_descriptors(request)
            self._reply(connection, error)
            return
        job = Job(operation(request), request, connection)
        self._jobs[connection] = job
        self._advance(job, lambda: next(job.running))

    def _claim(self, request: Request) -> None:
        """Refuse to work twice on one snapshot at a time; removing it stops the other."""
        name = request.fields.get("name")
        for job in self._jobs.values():
            if name is not None and job.snapshot == name:
                if request.fields.get("op") != "remove":
                    raise Aborted(f"snapshot {name} is being worked on")
                job.stop(Cancelled(f"snapshot {name} is being removed"))

    def _advance(self, job: Job, resume: Callable[[], Step]) -> None:
        """Let the operation go on to its next step or its end."""
        try:
            step = resume()
            job.deadline = time.monotonic() + step.seconds
            worker = job.worker = Worker(step)
            self._selector.register(worker.pidfd, selectors.EVENT_READ, lambda: self._collect(job, worker))
        except StopIteration as end:
            self._end(job, end.value)
        except BulkheadError as error:
            self._end(job, error)
        except OSError as error:
            kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else Internal
            self._end(job, kind(f"{job.request.fields.get('op')} of snapshot {job.snapshot}: {error}"))
        except Exception as error:
            logger.exception("operation failed")
            self._end(job, Internal(f"unpack helper: {type(error).__name__}: {error}"))

    def _collect(self, job: Job, worker: Worker) -> None:
        self._selector.unregister(worker.pidfd)
        job.worker = None
        try:
            answer = worker.collect()
        except BulkheadError as error:
            failure = job.reason or error
            self._advance(job, lambda: job.running.throw(failure))
            return
        if job.reason is not None:
            failure = job.reason
            self._advance(job, lambda: job.running.throw(failure))
        else:
            self._advance(job, lambda: job.running.send(answer))

    def _end(self, job: Job, outcome: Answer | BulkheadError) -> None:
        job.running.close()
        del self._jobs[job.connection]
        self._close_descriptors(job.request)
        self._trash_due = self._trash_due or time.monotonic() + GATHER_SECONDS
        if job.gone:
            job.connection.close()
            return
        self._reply(job.connection, outcome)

    def _reply(self, connection: socket.socket, outcome: Answer | BulkheadError) -> None:
        if isinstance(outcome, BulkheadError):
            full = isinstance(outcome, DiskFull)
            message: Answer = {"error": {"code": outcome.code, "message": str(outcome), "full": full}}
        else:
            message = {"ok": outcome}
        try:
            seqpacket.send(connection, message)
        except (OSError, BulkheadError) as error:
            logger.warning("answer not delivered: %s", error)

    def _close_descriptors(self, request: Request) -> None:
        while request.descriptors:
            os.close(request.descriptors.pop())

    def _empty_trash(self) -> None:
        """Start the remover if it is time, something was thrown away, and it is not at it."""
        if self._trash_due is not None and self._remover is None and time.monotonic() >= self._trash_due:
            self._trash_due = None
            if (step := self._operations.empty_trash()) is None:
                return
            worker = self._remover = Worker(step)
            self._selector.register(worker.pidfd, selectors.EVENT_READ, lambda: self._collect_remover(worker))

    def _collect_remover(self, worker: Worker) -> None:
        self._selector.unregister(worker.pidfd)
        self._remover = None
        try:
            answer = worker.collect()
        except BulkheadError as error:
            logger.warning("removing old snapshots: %s", error)
            return
        if answer.get("failed"):
            logger.warning("removing old snapshots: %s files could not be removed", answer["failed"])

    def _kill_all(self) -> None:
        workers = [job.worker for job in self._jobs.values() if job.worker is not None]
        if self._remover is not None:
            workers.append(self._remover)
        for worker in workers:
            worker.kill()
        patience = time.monotonic() + STOP_SECONDS
        for worker in workers:  # one that waits for the disk is left to its parent-death signal
            if worker.ended(max(patience - time.monotonic(), 0.0)):
                with contextlib.suppress(BulkheadError):
                    worker.collect()
        for connection in self._jobs:
            connection.close()
