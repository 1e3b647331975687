"""An image's layers into a proxy snapshotter: one after the other from the base up, each on the one beneath it."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError
from image_svc import telemetry
from image_svc.decryption.gatekeeper import Gatekeeper
from image_svc.ingest import Content
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.proxied import labels
from image_svc.proxied.client import Proxy
from image_svc.proxied.extract import Extraction, Taken, Wanted
from image_svc.proxied.proxies import Proxies
from image_svc.pulling.download import Download, Origin
from image_svc.pulling.layers import Bringer
from image_svc.pulling.metadata import Found
from image_svc.pulling.progress import LayerState, Progress, PullState
from image_svc.pulling.turns import Turns
from image_svc.pulling.unpacking import Unpacking
from image_svc.purpose import Purpose
from image_svc.registry.repository import Descriptor
from image_svc.store import NewImage, Store
from image_svc.unpack.client import UnpackClient
from image_svc.unpack.protocol import Limits

logger = logging.getLogger(__name__)

_UNLIMITED = 64


@dataclass(frozen=True)
class _Pull:
    """What one pull gives to each of its layers."""

    origin: Origin
    slots: threading.Semaphore
    patience: Patience
    progress: Progress
    image: str
    purpose: Purpose


class ProxiedBringer:
    """Brings layers into proxy snapshotters; pulls of one layer wait for each other."""

    def __init__(
        self,
        config: Config,
        content: Content,
        store: Store,
        client: UnpackClient,
        gatekeeper: Gatekeeper,
        bringer: Bringer,
        proxies: Proxies,
    ) -> None:
        """Share downloads with `bringer`, which brings layers into Bulkhead's own snapshots."""
        self._config = config
        self._content = content
        self._store = store
        self._client = client
        self._gatekeeper = gatekeeper
        self._bringer = bringer
        self._proxies = proxies
        own = config.bulkhead
        self._turns = Turns(own.unpack_slots or max(2, len(os.sched_getaffinity(0))))
        self._limits = Limits(entries=own.unpack_max_entries, bytes=own.unpack_max_bytes, seconds=own.unpack_timeout)

    def into(self, snapshotter: str, name: Reference, found: Found) -> "Into | None":
        """Return what brings an image's layers into that snapshotter; None if it is no proxy."""
        proxy = self._proxies.get(snapshotter)
        if proxy is None:
            return None
        described = labels.of_layers(
            str(name),
            found.descriptor.digest,
            found.manifest.layers,
            [layer.diff_id for layer in found.layers],
            [layer.chain_id for layer in found.layers],
            annotations=not self._config.images.disable_snapshot_annotations,
        )
        parents = ["", *(layer.chain_id for layer in found.layers)]
        wanted = [Wanted(*each) for each in zip(found.layers, parents, described, strict=False)]
        return Into(self, proxy, wanted)

    def bring(
        self, proxy: Proxy, wanted: Sequence[Wanted], image: NewImage, documents: Mapping[str, int], pull: _Pull
    ) -> None:
        """Have every layer there, and the image recorded."""
        blobs = dict(documents)
        for each in wanted:
            with self._proxies.working(proxy.name, each.layer.chain_id, pull.patience):
                if self._bring(proxy, each, pull):
                    blobs[each.layer.digest] = each.layer.size
        pull.progress.state = PullState.COMMITTING
        self._bringer.keep(blobs, pull.patience)
        self._store.add_image(image)

    def _bring(self, proxy: Proxy, wanted: Wanted, pull: _Pull) -> bool:
        """Have one layer there and return whether its blob was fetched for that."""
        layer, patience = wanted.layer, pull.patience
        if proxy.has(layer.chain_id, patience):
            self._store.add_proxied(proxy.name, layer.chain_id, wanted.parent)
            return self._there("present", layer.chain_id, pull)
        self._store.add_proxied(proxy.name, layer.chain_id, wanted.parent)
        extraction = Extraction(proxy, self._client, wanted, patience)
        try:
            extraction.begin()
            self._unpack(extraction, wanted, pull)
            extraction.commit()
        except Taken:
            logger.info("layer taken by its snapshotter", extra={"digest": layer.digest, "snapshotter": proxy.name})
            return self._there("lazy", layer.chain_id, pull)
        except BaseException:
            extraction.abandon()
            raise
        self._measure(proxy, layer.chain_id)
        telemetry.LAYERS.labels("unpacked").inc()
        return True

    def _there(self, origin: str, chain_id: str, pull: _Pull) -> bool:
        telemetry.LAYERS.labels(origin).inc()
        for shown in pull.progress.layers:
            if shown.chain_id == chain_id:
                shown.state, shown.received = LayerState.PRESENT, shown.size
        return False

    def _unpack(self, extraction: Extraction, wanted: Wanted, pull: _Pull) -> None:
        layer = wanted.layer
        decoder = self._gatekeeper.decoder(layer, pull.image, pull.purpose)
        open_blob = partial(self._downloading, wanted, pull)
        job = Unpacking(layer, 0, open_blob, extraction, self._limits, self._turns, pull.patience, decoder)
        pull.progress.show(job.progress)
        job.run()

    @contextmanager
    def _downloading(self, wanted: Wanted, pull: _Pull, avoid: tuple[str, ...]) -> Iterator[tuple[Download, bool]]:
        layer = wanted.layer

        def make() -> Download:
            own = Patience(self._config.bulkhead.pull_timeout, f"download of {layer.digest}")
            blob = Descriptor(layer.digest, layer.size, layer.media_type)
            return Download(blob, pull.origin, self._content, pull.slots, own, avoid)

        with self._bringer.jobs.join(("blob", layer.digest), make, pull.patience) as (download, mine):
            assert isinstance(download, Download)
            yield download, mine

    def _measure(self, proxy: Proxy, chain_id: str) -> None:
        try:
            found = proxy.usage(chain_id)
        except BulkheadError as error:
            logger.info("usage of layer %s: %s", chain_id, error)
            return
        self._store.measure_proxied(proxy.name, chain_id, found.bytes, found.inodes)

    def pull_of(
        self, origin: Origin, patience: Patience, progress: Progress, image: NewImage, purpose: Purpose
    ) -> _Pull:
        """Return what a pull's layers share."""
        slots = threading.Semaphore(self._config.images.max_concurrent_downloads or _UNLIMITED)
        return _Pull(origin, slots, patience, progress, image.names[0], purpose)


class Into:
    """Brings one image's layers into one snapshotter; stands in for `image_svc.pulling.layers.Bringer`."""

    def __init__(self, bringer: ProxiedBringer, proxy: Proxy, wanted: Sequence[Wanted]) -> None:
        self._bringer = bringer
        self._proxy = proxy
        self._wanted = wanted

    def bring(
        self,
        image: NewImage,
        documents: Mapping[str, int],
        origin: Origin,
        patience: Patience,
        progress: Progress,
        purpose: Purpose,
    ) -> None:
        """Have every layer in the snapshotter, and the image recorded."""
        pull = self._bringer.pull_of(origin, patience, progress, image, purpose)
        self._bringer.bring(self._proxy, self._wanted, image, documents, pull)
