"""One layer's single pass: while its blob downloads, it goes to the helper that decompresses, hashes and unpacks it."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import Protocol, TypeVar

from bulkhead.errors import Aborted, BulkheadError, Cancelled, DataLoss, Internal
from bulkhead.metrics import stage
from image_svc import telemetry, threads
from image_svc.decryption.gatekeeper import Chain, Decoder, DecryptorGone
from image_svc.ingest import Ingest
from image_svc.patience import Patience
from image_svc.pulling.download import CorruptBlob
from image_svc.pulling.feed import Feed
from image_svc.pulling.progress import LayerProgress, LayerState
from image_svc.pulling.shared_jobs import Job
from image_svc.pulling.turns import Turn, Turns
from image_svc.store import Layer
from image_svc.unpack.client import UnpackerGone
from image_svc.unpack.protocol import Limits, Unpacked

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds the helper gets to notice that its stream has ended early.
_LET_GO = 10.0
#: Times that one layer is begun again since its unpacker was killed, and seconds to wait for the helper's return.
_KILLS, _RETURN = 5, 60.0


class Helper(Protocol):
    """A process that a layer needs and that may be killed at any time."""

    def ping(self, *, timeout: float = 5.0) -> None:
        """Return if it is there."""


class Unpacker(Helper, Protocol):
    """What is wanted of the unpack helper's client here."""

    def unpack(self, name: str, stream: int, limits: Limits, algorithm: str = "sha256") -> Unpacked:
        """Unpack a layer blob into a new snapshot."""

    def remove(self, name: str) -> None:
        """Drop a snapshot."""


class Source(Protocol):
    """A download that can be followed."""

    @property
    def ingest(self) -> Ingest:
        """The file that grows."""

    def show(self, progress: LayerProgress) -> None:
        """Write what has arrived into a progress, too."""

    @property
    def future(self) -> "Future[None]":
        """Settled when the blob has been checked."""


class Unpacking(Job[Unpacked]):
    """Unpacks one layer into the snapshot `name`; not to be used before it was settled and committed.

    An encrypted one goes through its `decoder` first: ciphertext down one pipe, and out of another one to the helper.
    """

    def __init__(
        self,
        layer: Layer,
        name: int,
        open_blob: Callable[[tuple[str, ...]], AbstractContextManager[tuple[Source, bool]]],
        unpacker: Unpacker,
        limits: Limits,
        turns: Turns,
        patience: Patience,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(patience)
        self.layer = layer
        self.name = name
        self.progress = LayerProgress(layer.digest, layer.size, chain_id=layer.chain_id)
        #: Set once the layer is in the store: its directory then outlives this job.
        self.committed = False
        #: Held while the layer is settled, since two pulls may come to it at once.
        self.settling = threading.Lock()
        self._open_blob = open_blob
        self._unpacker = unpacker
        self._limits = limits
        self._turns = turns
        self._decoder = decoder
        self._helpers: list[Helper] = [unpacker, *([decoder] if decoder else [])]

    def run(self) -> Unpacked:
        """Unpack the layer; a blob that proves corrupt is fetched once more, from another host if there is one."""
        try:
            unpacked = self._once_more_if_corrupt()
        except BaseException:
            self.progress.state = LayerState.FAILED
            raise
        self.progress.state = LayerState.UNPACKED
        return unpacked

    def release(self) -> None:
        """Remove a directory that never became a layer."""
        if not self.committed:
            try:
                self._unpacker.remove(str(self.name))
            except BulkheadError as error:
                logger.info("snapshot %s is left to the next start: %s", self.name, error)

    def _once_more_if_corrupt(self) -> Unpacked:
        try:
            return despite_kills(partial(self._attempt, ()), self.patience, *self._helpers)
        except CorruptBlob as error:
            first = error
        telemetry.RETRIES.labels("corrupt").inc()
        logger.warning("%s; fetching it once more", first)
        try:
            avoid = () if first.resumed else first.hosts
            return despite_kills(partial(self._attempt, avoid), self.patience, *self._helpers)
        except CorruptBlob:
            raise
        except BulkheadError as second:
            raise first from second

    def _attempt(self, avoid: tuple[str, ...]) -> Unpacked:
        while True:
            with self._open_blob(avoid) as (source, mine), stage("unpack"):
                source.show(self.progress)
                try:
                    return self._stream(source)
                except BulkheadError:
                    self.patience.check()
                    if self._another_failed(source, mine=mine):
                        telemetry.RETRIES.labels("shared").inc()
                    else:
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
        source.ingest.wait(0, self.patience)
        self.progress.state = LayerState.DOWNLOADING
        with self._turns.begin(self.patience) as turn:
            began = time.monotonic()
            unpacked = self._through_pipe(source, turn)
        self.patience.wait(source.future)
        if unpacked.diff_id != self.layer.diff_id:
            text = f"its tar has digest {unpacked.diff_id}, the image says {self.layer.diff_id}"
            raise DataLoss(f"layer {self.layer.digest}: {text}")
        fields = {"digest": self.layer.digest, "entries": unpacked.entries, "bytes": unpacked.stream_bytes}
        logger.info("layer unpacked", extra={**fields, "seconds": round(time.monotonic() - began, 3)})
        return unpacked

    def _through_pipe(self, source: Source, turn: Turn) -> Unpacked:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with ExitStack() as held:
            plain: Chain | None = None
            try:
                if self._decoder is not None:
                    plain = held.enter_context(self._decoder.open(reader, self.patience))
                    os.close(reader)
                    reader = plain.reader  # the helper's alone: once it lets go, whoever writes there is told
                result: Future[Unpacked] = Future()
                threads.start(self._call, "unpack", reader, result)
            except BaseException:
                os.close(writer)
                os.close(reader)
                raise
            try:
                try:
                    Feed(source.ingest, writer, self.progress, self.patience, result.done).run(turn)
                finally:
                    os.close(writer)
                return self._end(result, plain)
            except BaseException:
                held.close()  # or the helper would wait for a decryptor that hangs
                # The helper must have let go of the directory before anybody tries again or removes it.
                wait([result], timeout=_LET_GO)
                raise

    def _end(self, result: "Future[Unpacked]", plain: Chain | None) -> Unpacked:
        """Wait for helper and decryptor; a reason of the decryptor's own explains the helper's, if both failed."""
        try:
            unpacked = self.patience.wait(result)
        except BulkheadError:
            self.patience.check()
            if plain is not None:
                with suppress(Cancelled):
                    plain.finish(self.patience)
            raise
        if plain is not None:
            plain.finish(self.patience)
        return unpacked

    def _call(self, reader: int, result: Future[Unpacked]) -> None:
        algorithm = self.layer.diff_id.partition(":")[0]
        try:
            result.set_result(self._unpacker.unpack(str(self.name), reader, self._limits, algorithm))
        except BulkheadError as error:
            result.set_exception(error)
        except Exception as error:  # goes to the job's own thread
            made = Internal(f"unpack helper's client failed: {type(error).__name__}: {error}")
            made.__cause__ = error
            result.set_exception(made)
        finally:
            os.close(reader)


def despite_kills(act: Callable[[], T], patience: Patience, *helpers: Helper) -> T:
    """Do what takes these helpers, once more each time that one of them or its worker is killed meanwhile."""
    for _ in range(_KILLS):
        try:
            return act()
        except (Aborted, UnpackerGone, DecryptorGone) as error:
            telemetry.RETRIES.labels("decryptor" if isinstance(error, DecryptorGone) else "unpacker").inc()
            logger.warning("%s; trying again", error)
            _await(helpers, patience, error)
    return act()


def _await(helpers: Sequence[Helper], patience: Patience, why: BulkheadError) -> None:
    until = time.monotonic() + _RETURN
    while True:
        patience.sleep(0.1)
        try:
            for helper in helpers:
                helper.ping()
        except BulkheadError:
            if time.monotonic() > until:
                raise why from None
        else:
            return
