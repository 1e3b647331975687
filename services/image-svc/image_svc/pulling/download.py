"""One blob's download: into its partial file, hashed on the way; a pull that commits makes it a blob."""

import logging
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Protocol

from bulkhead.courtesy import step_aside
from bulkhead.errors import BulkheadError, DataLoss, Internal
from image_svc import telemetry
from image_svc.ingest import Content, Ingest
from image_svc.oci import digests
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.pulling.movers import moving
from image_svc.pulling.progress import LayerProgress, LayerState
from image_svc.pulling.shared_jobs import Job
from image_svc.registry.repository import Descriptor
from image_svc.slots import Slots

logger = logging.getLogger(__name__)


class CorruptBlob(DataLoss):
    """A blob whose bytes are not what its digest promises; `hosts` may be avoided in another attempt."""

    def __init__(self, message: str, hosts: Collection[str] = (), *, resumed: bool = False) -> None:
        super().__init__(message)
        self.hosts = tuple(hosts)
        #: Some of the bytes came from an earlier run and may be to blame.
        self.resumed = resumed


class Origin(Protocol):
    """Where blobs come from: a repository behind its hosts."""

    @property
    def reference(self) -> Reference:
        """The image that is pulled."""

    def held(self) -> AbstractContextManager[object]:
        """Keep connections open during a block."""

    def download(
        self,
        wanted: Descriptor,
        have: Callable[[], int],
        write: Callable[[memoryview], None],
        patience: Patience,
        avoid: Collection[str] = (),
    ) -> str:
        """Stream a blob from byte `have()` on into `write` and return the host that ended it."""


class Download(Job[None]):
    """Brings one blob into the content store; `ingest` can be followed from the start."""

    def __init__(
        self,
        wanted: Descriptor,
        origin: Origin,
        content: Content,
        slots: Slots,
        patience: Patience,
        avoid: Collection[str] = (),
    ) -> None:
        super().__init__(patience)
        self.wanted = wanted
        self.origin = origin
        self._content = content
        self._slots = slots
        self._avoid = avoid
        self._hasher = digests.hasher(wanted.digest)
        self.ingest: Ingest = content.open(wanted.digest, wanted.size)
        #: Bytes that were here before.
        self.resumed = self.ingest.have
        self._shown: list[LayerProgress] = []

    def show(self, progress: LayerProgress) -> None:
        """Write what has arrived into a progress, too."""
        progress.received, progress.resumed = self.ingest.have, self.resumed
        self._shown.append(progress)

    def run(self) -> None:
        """Download what is missing and check everything; a blob that was here before is checked only.

        What a disk lost after it had said that it was written would else fail every pull from then on.
        """
        try:
            for block in self.ingest.blocks():
                self.patience.check()
                self._hasher.update(block)
            host = self._fetch()
            self.ingest.finish()
            self._check(f"{self._hasher.name}:{self._hasher.hexdigest()}", host, resumed=bool(self.resumed))
        except OSError as error:
            failure = self._disk_failure(error)
            self.ingest.fail(failure)
            raise failure from error
        except BaseException as error:  # whatever it is, the readers must not wait for ever
            self.ingest.fail(error if isinstance(error, BulkheadError) else Internal(f"download: {error!r}"))
            if not self.ingest.have:
                self._content.drop_partial(self.wanted.digest)
            raise

    def _check(self, digest: str, host: str, *, resumed: bool) -> None:
        """Raise CorruptBlob, after the bytes are gone, if they are not what was wanted."""
        if digest == self.wanted.digest:
            return
        self._content.drop_partial(self.wanted.digest)
        if self._content.quarantine(self.wanted.digest):
            telemetry.DAMAGED.labels("blob").inc()
        text = f"{self._title}: {host or 'what was here of it'} has content of digest {digest}"
        raise CorruptBlob(text, [host] if host else [], resumed=resumed)

    @property
    def _title(self) -> str:
        return f"{self.origin.reference.name}@{self.wanted.digest}"

    def _disk_failure(self, error: OSError) -> BulkheadError:
        return telemetry.disk_failure(self._title, error)

    def release(self) -> None:
        """Close the file."""
        self.ingest.close()

    def _fetch(self) -> str:
        """Download the rest and return the host it came from; "" if nothing was missing."""
        resumed = self.resumed
        if resumed == self.wanted.size:
            return ""
        self.patience.acquire(self._slots)
        try:
            with self.origin.held():
                began = time.monotonic()
                host = self.origin.download(
                    self.wanted, lambda: self.ingest.have, self._write, self.patience, self._avoid
                )
        finally:
            self._slots.release()
        telemetry.RESUMED_BYTES.inc(resumed)
        fields = {
            "reference": str(self.origin.reference),
            "digest": self.wanted.digest,
            "host": host,
            "bytes": self.wanted.size - resumed,
            "resumed_bytes": resumed,
            "seconds": round(time.monotonic() - began, 3),
        }
        logger.info("blob downloaded", extra=fields)
        return host

    def _write(self, part: memoryview) -> None:
        step_aside()
        with moving(self.patience, self._title):
            self._take(part)

    def _take(self, part: memoryview) -> None:
        telemetry.PULLED_BYTES.inc(len(part))
        try:
            self.ingest.write(part)
        except OSError as error:
            # Told apart here: a connection that breaks raises OSError as well, and is tried again.
            raise self._disk_failure(error) from error
        self._hasher.update(part)
        for progress in self._shown:
            progress.received = self.ingest.have
            if progress.state is LayerState.WAITING:
                progress.state = LayerState.DOWNLOADING
