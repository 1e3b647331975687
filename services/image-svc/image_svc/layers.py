"""One layer's single pass: followed while it downloads, decompressed, hashed for its diff id and unpacked."""

import fcntl
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from typing import Protocol

from bulkhead.errors import BulkheadError, DataLoss, Internal
from bulkhead.metrics import stage
from image_svc import digests
from image_svc.decompress import tar_stream
from image_svc.download import CorruptBlob
from image_svc.ingest import Ingest
from image_svc.patience import Patience
from image_svc.shared_jobs import Job
from image_svc.store import Layer
from image_svc.unpack.protocol import Limits, Unpacked

logger = logging.getLogger(__name__)

#: Bytes of the pipe to the helper; the most an unprivileged process may ask for (pipe(7)).
PIPE_SIZE = 1 << 20
#: Blocks that wait for the diff id's hash.
_QUEUE = 4
#: Seconds the helper gets to notice that its stream has ended early.
_LET_GO = 10.0


class Unpacker(Protocol):
    """What is wanted of the unpack helper's client here."""

    def unpack(self, name: str, stream: int, limits: Limits) -> Unpacked:
        """Unpack a tar stream into a new snapshot."""

    def remove(self, name: str) -> None:
        """Drop a snapshot."""


class Source(Protocol):
    """A download that can be followed."""

    @property
    def ingest(self) -> Ingest:
        """The file that grows."""

    @property
    def future(self) -> "Future[None]":
        """Settled when the blob has been checked."""


class Unpacking(Job[Unpacked]):
    """Unpacks one layer into the snapshot `name`; not to be used before it was settled and committed."""

    def __init__(
        self,
        layer: Layer,
        name: int,
        open_blob: Callable[[tuple[str, ...]], AbstractContextManager[tuple[Source, bool]]],
        unpacker: Unpacker,
        limits: Limits,
        budget: threading.Semaphore,
        patience: Patience,
    ) -> None:
        super().__init__(patience)
        self.layer = layer
        self.name = name
        #: Set once the layer is in the store: its directory then outlives this job.
        self.committed = False
        #: Held while the layer is settled, since two pulls may come to it at once.
        self.settling = threading.Lock()
        self._open_blob = open_blob
        self._unpacker = unpacker
        self._limits = limits
        self._budget = budget

    def run(self) -> Unpacked:
        """Unpack the layer; a blob that proves corrupt is fetched once more, from another host if there is one."""
        self.patience.acquire(self._budget)
        try:
            try:
                return self._attempt(())
            except CorruptBlob as error:
                logger.warning("%s; fetching it once more", error)
                return self._again(error)
        finally:
            self._budget.release()

    def release(self) -> None:
        """Remove a directory that never became a layer."""
        if not self.committed:
            try:
                self._unpacker.remove(str(self.name))
            except BulkheadError as error:
                logger.info("snapshot %s is left to the next start: %s", self.name, error)

    def _again(self, first: CorruptBlob) -> Unpacked:
        try:
            return self._attempt(() if first.resumed else first.hosts)
        except BulkheadError as second:
            if isinstance(second, CorruptBlob):
                raise
            raise first from second

    def _attempt(self, avoid: tuple[str, ...]) -> Unpacked:
        while True:
            with self._open_blob(avoid) as (source, mine), stage("unpack"):
                try:
                    return self._stream(source)
                except BulkheadError:
                    self.patience.check()
                    if not self._another_failed(source, mine=mine):
                        raise

    def _another_failed(self, source: Source, *, mine: bool) -> bool:
        """Wait for the end of the download, and raise its failure: that explains whatever went wrong with its contents.

        True if it was another pull's, which may have failed for its credentials or its hosts: ours is to be tried.
        """
        try:
            self.patience.wait(source.future)
        except BulkheadError as failure:
            self.patience.check()
            if mine or isinstance(failure, CorruptBlob):
                raise
            return True
        return False

    def _stream(self, source: Source) -> Unpacked:
        began = time.monotonic()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        result: Future[Unpacked] = Future()
        diff = _Hashing(self.layer.diff_id)
        _widen(writer)
        threading.Thread(target=self._call, args=(reader, result), name="unpack", daemon=True).start()
        try:
            self._feed(source, writer, diff)
        except BaseException:
            os.close(writer)
            diff.end()
            # The helper must have let go of the directory before anybody tries again or removes it.
            wait([result], timeout=_LET_GO)
            raise
        os.close(writer)
        found = diff.end()
        unpacked = self.patience.wait(result)
        self.patience.wait(source.future)
        if found != self.layer.diff_id:
            text = f"layer {self.layer.digest}: its tar has digest {found}, the image says {self.layer.diff_id}"
            raise DataLoss(text)
        fields = {"digest": self.layer.digest, "entries": unpacked.entries, "bytes": unpacked.stream_bytes}
        logger.info("layer unpacked", extra={**fields, "seconds": round(time.monotonic() - began, 3)})
        return unpacked

    def _feed(self, source: Source, writer: int, diff: "_Hashing") -> None:
        """Send the tar to the helper; a pipe that breaks means the helper has an answer already."""
        os.set_blocking(writer, False)
        for block in tar_stream(source.ingest.follow(self.patience), f"layer {self.layer.digest}"):
            self.patience.check()
            diff.update(block)
            try:
                self._write(writer, block)
            except BrokenPipeError:
                return

    def _write(self, fd: int, block: bytes) -> None:
        view = memoryview(block)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                self.patience.check()
                room = select.poll()
                room.register(fd, select.POLLOUT)
                room.poll(1000)

    def _call(self, reader: int, result: Future[Unpacked]) -> None:
        try:
            result.set_result(self._unpacker.unpack(str(self.name), reader, self._limits))
        except BulkheadError as error:
            result.set_exception(error)
        except Exception as error:  # goes to the job's own thread
            made = Internal(f"unpack helper's client failed: {type(error).__name__}: {error}")
            made.__cause__ = error
            result.set_exception(made)
        finally:
            os.close(reader)


class _Hashing:
    """Hashes blocks in a thread of its own, a few of them behind the writer."""

    def __init__(self, like: str) -> None:
        self._hasher = digests.hasher(like)
        self._blocks: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._run, name="hash-diff", daemon=True)
        self._thread.start()

    def update(self, block: bytes) -> None:
        self._blocks.put(block)

    def end(self) -> str:
        """Return the digest of everything."""
        self._blocks.put(None)
        self._thread.join()
        return f"{self._hasher.name}:{self._hasher.hexdigest()}"

    def _run(self) -> None:
        for block in iter(self._blocks.get, None):
            self._hasher.update(block)


def _widen(fd: int) -> None:
    """Make the pipe larger, if the user's share of pipe memory allows."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return
