"""PullImage: resolve, find this platform's image, check it, bring what is missing of it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from bulkhead.metrics import stage
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc import telemetry
from image_svc.decryption.gatekeeper import Gatekeeper
from image_svc.ingest import Content
from image_svc.leases import Lease, Leases
from image_svc.oci import platforms, reference
from image_svc.oci.platforms import Platform
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.pulling.download import Origin
from image_svc.pulling.layers import LayerPuller, Pull
from image_svc.pulling.local import LocalContent
from image_svc.pulling.metadata import Documents, Finder, Found
from image_svc.pulling.progress import LayerProgress, Progress, Pulls, PullState
from image_svc.purpose import Purpose
from image_svc.registry.registries import Registries
from image_svc.registry.repository import Descriptor
from image_svc.store import NewImage
from image_svc.unpack.protocol import DiskFull

logger = logging.getLogger(__name__)


#: Pulls that ask for manifests at the same time, and the seconds after which one does so in any case. Twenty at once
#: would pass the interpreter's lock among themselves for a quarter of a second, while every other call waits for it.
_AT_ONCE, _TURN = 2, 0.2
#: A pull that is for no pod.
ANYBODY = Purpose()


class Place(Documents, Origin, Protocol):
    """Where an image comes from, documents and layers alike: a registry's repository, or the content store."""


#: Looks at an image before any of its layers is asked for, and raises what whoever pulls is to be told. It gets the
#: name, what was found, where it comes from, and the pod it is for.
Check = Callable[[Reference, Found, Place, Purpose, Patience], None]


class PullsLayers(Protocol):
    """What pulls an image's layers to where they are wanted."""

    def pull_all(self, image: NewImage, documents: Mapping[str, int], pull: Pull) -> None:
        """Have every layer there, and the image recorded; `documents` are sizes of blobs, by digest, to record."""


#: Gives, for the name of a snapshotter, what pulls layers into it; None for Bulkhead's own ("" is the node's).
Elsewhere = Callable[[str, Reference, Found], PullsLayers | None]


class Puller:
    """Pulls images into the store; any number of pulls at once share what they have in common."""

    def __init__(
        self,
        registries: Registries,
        content: Content,
        layer_puller: LayerPuller,
        gatekeeper: Gatekeeper,
        leases: Leases,
        *,
        checks: Sequence[Check] = (),
        elsewhere: Elsewhere = lambda snapshotter, name, found: None,
        host: Platform | None = None,
    ) -> None:
        self._registries = registries
        self._content = content
        self._layer_puller = layer_puller
        self._gatekeeper = gatekeeper
        self._leases = leases
        self._checks = (self._authorised, *checks)
        self._elsewhere = elsewhere
        self._host = host or platforms.current()
        #: Those under way, for whoever watches.
        self.pulls = Pulls()
        self._turns = threading.Semaphore(_AT_ONCE)

    def pull(
        self,
        image: str,
        auth: AuthConfig | None,
        patience: Patience,
        purpose: Purpose = ANYBODY,
        progress: Progress | None = None,
        snapshotter: str = "",
    ) -> str:
        """Pull an image completely and return its id; nothing of it is listed before that.

        `progress` is written for whoever watches this pull. The layers go to that snapshotter, or the node's.
        """
        name = reference.parse(image)
        began = time.monotonic()
        shown = self.pulls.shown(progress or Progress(image))
        with shown as progress, telemetry.PULLING.track_inprogress(), telemetry.outcome(f"pull of {name}"):
            repository = self._registries.repository(name, auth)
            with repository.held(), self._freeing(progress), self._leases.lease() as lease:
                with stage("pull_resolve"), self._in_turn():
                    target = repository.resolve(patience)
                size = self._take(name, target, repository, lease, patience, purpose, progress, snapshotter)
        seconds = round(time.monotonic() - began, 3)
        fields = {"reference": str(name), "image": progress.image_id, "bytes": size, "seconds": seconds}
        logger.info("image pulled", extra=fields)
        return progress.image_id

    def adopt(
        self,
        target: Descriptor,
        name: Reference,
        patience: Patience,
        progress: Progress | None = None,
        purpose: Purpose = ANYBODY,
        snapshotter: str = "",
        *,
        provisional: bool = False,
    ) -> str:
        """Make an image, whose blobs are all in the content store, one that can be run; return its id.

        The same is checked as of one that is pulled. The caller's lease holds the blobs. `provisional` names are
        taken back unless the import that gives them confirms them.
        """
        with self.pulls.shown(progress or Progress(str(name))) as progress, self._leases.lease() as lease:
            try:
                place = LocalContent(name)
                self._take(
                    name, target, place, lease, patience, purpose, progress, snapshotter, provisional=provisional
                )
            except OSError as error:
                raise telemetry.disk_failure(f"import of {name}", error) from error
        return progress.image_id

    def _take(
        self,
        name: Reference,
        target: Descriptor,
        place: Place,
        lease: Lease,
        patience: Patience,
        purpose: Purpose,
        progress: Progress,
        snapshotter: str,
        *,
        provisional: bool = False,
    ) -> int:
        """Bring what a name stands for and return the bytes of its blobs."""
        finder = Finder(place, self._content, lease, patience)
        with stage("pull_resolve"), self._in_turn():
            found = finder.find(target, self._host)
        lease.claim(*(each.chain_id for each in found.layers), *(each.digest for each in found.layers))
        progress.image_id = found.manifest.config.digest
        progress.layers = tuple(LayerProgress(each.digest, each.size, chain_id=each.chain_id) for each in found.layers)
        progress.state = PullState.CHECKING
        for check in self._checks:
            check(name, found, place, purpose, patience)
        progress.state = PullState.FETCHING
        with stage("pull_layers"):
            image = _image(name, found, provisional=provisional)
            pull = self._layer_puller.pull_of(image.names[0], place, patience, progress, purpose)
            layers = self._elsewhere(snapshotter, name, found) or self._layer_puller
            layers.pull_all(image, finder.fetched, pull)
        return found.manifest.size

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Be one of a few, or after a short while one more: those before may be waiting for their registry."""
        held = self._turns.acquire(timeout=_TURN)
        try:
            yield
        finally:
            if held:
                self._turns.release()

    @contextmanager
    def _freeing(self, progress: Progress) -> Iterator[None]:
        """Give back what a pull took that met a full disk, unless another pull wants it; others keep it for a retry."""
        try:
            yield
        except DiskFull:
            for layer in progress.layers:
                self._leases.unless_claimed(layer.digest, partial(self._content.drop_partial, layer.digest))
            raise

    def _authorised(self, name: Reference, found: Found, place: Place, purpose: Purpose, patience: Patience) -> None:
        if found.manifest.encrypted:
            self._gatekeeper.check(str(name), purpose, found.layers, patience)


def _image(name: Reference, found: Found, *, provisional: bool) -> NewImage:
    digest_name = str(name.with_digest(found.target.digest))
    return NewImage(
        id=found.manifest.config.digest,
        manifest=found.descriptor.digest,
        media_type=found.descriptor.media_type,
        target=found.target.digest,
        size=found.manifest.size + found.descriptor.size,
        encrypted=found.manifest.encrypted,
        user=found.user,
        layers=found.layers,
        names=(digest_name,) if name.digest else (str(name), digest_name),
        provisional=provisional,
    )
