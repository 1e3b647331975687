"""An image whose layers are not in the snapshotter that a container wants them in: unpacked there from its blobs.

The kubelet says at a pull for which runtime handler an image is only where its feature gate RuntimeClassInImageCriApi
is on. Without it an image is pulled into the node's snapshotter, and is wanted in another when the container is made.
"""

import contextvars
import logging
import threading
from concurrent.futures import Future

from bulkhead.errors import BulkheadError, FailedPrecondition, Internal, ResourceExhausted, Unavailable
from image_svc import threads
from image_svc.ingest import Content
from image_svc.oci import reference
from image_svc.patience import Patience
from image_svc.pulling.pull import Puller
from image_svc.purpose import Purpose
from image_svc.registry.repository import Descriptor
from image_svc.snapshotters import Snapshotters
from image_svc.store import Image, Store

logger = logging.getLogger(__name__)

#: Seconds that a caller waits for it, below what it waits for its whole call.
WAIT = 20.0


class Ready:
    """Makes images ready for snapshotters, each once at a time, for as long as that takes."""

    def __init__(
        self, store: Store, content: Content, snapshotters: Snapshotters, puller: Puller, limit: float
    ) -> None:
        """Give up after `limit` seconds."""
        self._store = store
        self._content = content
        self._snapshotters = snapshotters
        self._puller = puller
        self._limit = limit
        self._lock = threading.Lock()
        self._work: dict[tuple[str, str], Future[None]] = {}

    def has(self, image: Image, snapshotter: str, patience: Patience) -> bool:
        """Tell whether an image's layers are in a snapshotter."""
        proxy = self._snapshotters.proxy(snapshotter)
        if proxy is None:
            return self._store.chain(image.chain_id) is not None
        return not image.chain_id or proxy.has(image.chain_id, patience)

    def possible(self, image: Image, snapshotter: str, patience: Patience) -> bool:
        """Tell whether a container can have the image there: its layers are there, or can be made of what is here.

        A snapshotter that does not answer is taken to have them: a pull could do nothing about that.
        """
        try:
            if self.has(image, snapshotter, patience):
                return True
        except BulkheadError as error:
            logger.info("image %s in snapshotter %s: %s", image.id, snapshotter, error)
            return True
        manifests = set(image.manifests.values())
        layers = [self._store.manifest_layers(manifest) for manifest in manifests]
        return any(all(self._content.has(layer.digest) for layer in each) for each in layers)

    def ensure(self, image: Image, manifest: str, snapshotter: str, purpose: Purpose, patience: Patience) -> None:
        """Return when the layers are there.

        FailedPrecondition if they are not on the node in a form that can be unpacked; Unavailable if that takes long:
        it goes on, and the caller may ask again.
        """
        self._snapshotters.get(snapshotter)
        if self.has(image, snapshotter, patience):
            return
        wanted = self._snapshotters.name(snapshotter)
        work = self._begin(image, manifest, wanted, purpose)
        waiting = Patience(min(WAIT, patience.left), f"image {image.id} in snapshotter {wanted}")
        with patience.interruptible(waiting.cancel):
            try:
                waiting.wait(work)
            except BulkheadError:
                patience.check()
                if work.done():
                    raise
                text = f"image {image.id} is being unpacked into snapshotter {wanted} from what is on the node"
                raise Unavailable(f"{text}, since a container wants it there; try again") from None

    def _begin(self, image: Image, manifest: str, snapshotter: str, purpose: Purpose) -> Future[None]:
        key = (snapshotter, manifest)
        with self._lock:
            if (known := self._work.get(key)) is not None:
                return known
            work = self._work[key] = Future()
        run = contextvars.copy_context().run
        try:
            threads.start(run, f"ready-{snapshotter}", self._make, image, manifest, snapshotter, purpose, work)
        except ResourceExhausted as error:
            with self._lock:
                del self._work[key]
            work.set_exception(error)
        return work

    def _make(self, image: Image, manifest: str, snapshotter: str, purpose: Purpose, work: Future[None]) -> None:
        try:
            self._adopt(image, manifest, snapshotter, purpose)
        except FailedPrecondition as error:
            text = f"image {image.id}: its layers are not in snapshotter {snapshotter}, and cannot be unpacked there"
            cure = "pull it for a runtime handler with that snapshotter"
            work.set_exception(FailedPrecondition(f"{text} ({error}); {cure}"))
        except BulkheadError as error:
            work.set_exception(error)
        except Exception as error:  # goes to whoever waits
            logger.exception("unpacking into snapshotter %s failed", snapshotter)
            work.set_exception(Internal(f"image {image.id} for snapshotter {snapshotter}: {error}"))
        else:
            work.set_result(None)
        finally:
            with self._lock:
                self._work.pop((snapshotter, manifest), None)

    def _adopt(self, image: Image, manifest: str, snapshotter: str, purpose: Purpose) -> None:
        targets = self._store.targets()
        names = [name for name in image.names if image.manifests[name] == manifest and name in targets]
        if not names:
            raise FailedPrecondition(f"manifest {manifest} has no name any more")
        target = Descriptor(targets[names[0]], 0, "")
        # By its digest, which stands for nothing else: a tag may be another image's by the time that this is done.
        name = reference.parse(names[0]).with_digest(target.digest)
        patience = Patience(self._limit, f"image {image.id} in snapshotter {snapshotter}")
        logger.info("unpacking image for another snapshotter", extra={"image": image.id, "snapshotter": snapshotter})
        self._puller.adopt(target, name, patience, purpose=purpose, snapshotter=snapshotter)
