"""One blob's download: into its partial file, hashed on the way, made durable, then a blob."""

import logging
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future

from bulkhead.errors import BulkheadError, Cancelled, DataLoss, Internal
from image_svc import digests, telemetry
from image_svc.ingest import Content, Ingest
from image_svc.patience import Patience
from image_svc.registry.repository import Descriptor, Repository
from image_svc.shared_jobs import Job
from image_svc.store import Store

logger = logging.getLogger(__name__)


class CorruptBlob(DataLoss):
    """A blob whose bytes are not what its digest promises; `hosts` may be avoided in another attempt."""

    def __init__(self, message: str, hosts: Collection[str] = (), *, resumed: bool = False) -> None:
        super().__init__(message)
        self.hosts = tuple(hosts)
        #: Some of the bytes came from an earlier run and may be to blame.
        self.resumed = resumed


class Download(Job[None]):
    """Brings one blob into the content store; `ingest` can be followed from the start."""

    def __init__(
        self,
        wanted: Descriptor,
        repository: Repository,
        content: Content,
        store: Store,
        slots: threading.Semaphore,
        patience: Patience,
        avoid: Collection[str] = (),
    ) -> None:
        super().__init__(patience)
        self.wanted = wanted
        self._repository = repository
        self._content = content
        self._store = store
        self._slots = slots
        self._avoid = avoid
        self.ingest: Ingest = content.open(wanted.digest, wanted.size)

    def run(self) -> None:
        """Download what is missing, check everything, keep it; a blob that was here before is checked only.

        What a disk lost after it had said that it was written would else fail every pull from then on.
        """
        resumed, present = self.ingest.have, self.ingest.complete
        found: Future[str] = Future()
        hashing = threading.Thread(target=self._hash, args=(found,), name="hash-blob", daemon=True)
        try:
            hashing.start()
            host = self._fetch(resumed)
            self.ingest.finish()
            self._check(found.result(), host, resumed=bool(resumed))
            if not present:
                self.ingest.sync()
                self._content.keep(self.wanted.digest)
            self._store.add_blob(self.wanted.digest, self.wanted.size)
        except OSError as error:
            failure = self._disk_failure(error)
            self.ingest.fail(failure)
            raise failure from error
        except BaseException as error:  # whatever it is, the readers must not wait for ever
            self.ingest.fail(error if isinstance(error, BulkheadError) else Internal(f"download: {error!r}"))
            if not self.ingest.have:
                self._content.drop_partial(self.wanted.digest)
            raise
        finally:
            if hashing.ident is not None:
                hashing.join()

    def _check(self, digest: str, host: str, *, resumed: bool) -> None:
        """Raise CorruptBlob, after the bytes are gone, if they are not what was wanted."""
        if digest == self.wanted.digest:
            return
        self._content.drop_partial(self.wanted.digest)
        self._content.remove(self.wanted.digest)
        what = f"{self._repository.reference.name}@{self.wanted.digest}"
        text = f"{what}: {host or 'what was here of it'} has content of digest {digest}"
        raise CorruptBlob(text, [host] if host else [], resumed=resumed)

    def _disk_failure(self, error: OSError) -> BulkheadError:
        return telemetry.disk_failure(f"{self._repository.reference.name}@{self.wanted.digest}", error)

    def release(self) -> None:
        """Close the file."""
        self.ingest.close()

    def _fetch(self, resumed: int) -> str:
        """Download the rest and return the host it came from; "" if nothing was missing."""
        if resumed == self.wanted.size:
            return ""
        self.patience.acquire(self._slots)
        try:
            with self._repository.held():
                began = time.monotonic()
                host = self._repository.download(
                    self.wanted, lambda: self.ingest.have, self._write, self.patience, self._avoid
                )
        finally:
            self._slots.release()
        fields = {
            "reference": str(self._repository.reference),
            "digest": self.wanted.digest,
            "host": host,
            "bytes": self.wanted.size - resumed,
            "resumed_bytes": resumed,
            "seconds": round(time.monotonic() - began, 3),
        }
        logger.info("blob downloaded", extra=fields)
        return host

    def _write(self, part: memoryview) -> None:
        telemetry.PULLED_BYTES.inc(len(part))
        try:
            self.ingest.write(part)
        except OSError as error:
            # Told apart here: a connection that breaks raises OSError as well, and is tried again.
            raise self._disk_failure(error) from error

    def _hash(self, found: Future[str]) -> None:
        hasher = digests.hasher(self.wanted.digest)
        try:
            for block in self.ingest.follow(self.patience):
                hasher.update(block)
            found.set_result(f"{hasher.name}:{hasher.hexdigest()}")
        except BaseException as error:  # goes to the download's own thread
            found.set_exception(error if isinstance(error, BulkheadError) else Cancelled(str(error)))
