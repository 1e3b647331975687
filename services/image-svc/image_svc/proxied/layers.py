"""An image's layers into a proxy snapshotter: one after the other from the base up, each on the one beneath it.

Their blobs are fetched side by side, as far as it is known that they are needed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError
from image_svc import telemetry
from image_svc.oci.reference import Reference
from image_svc.proxied import labels
from image_svc.proxied.ahead import Ahead
from image_svc.proxied.client import Proxy
from image_svc.proxied.extract import Extraction, Taken, Wanted
from image_svc.proxied.proxies import Proxies
from image_svc.pulling.layers import LayerPuller, Pull
from image_svc.pulling.metadata import Found
from image_svc.pulling.progress import LayerProgress, LayerState, PullState
from image_svc.store import Layer, NewImage, Store
from image_svc.unpack.client import UnpackClient

logger = logging.getLogger(__name__)


class ProxiedLayerPuller:
    """Pulls layers into proxy snapshotters; pulls of one layer wait for each other."""

    def __init__(
        self, config: Config, store: Store, client: UnpackClient, layer_puller: LayerPuller, proxies: Proxies
    ) -> None:
        """Share downloads and the budget for unpacking with what pulls layers into Bulkhead's own snapshots."""
        self._config = config
        self._store = store
        self._client = client
        self._layer_puller = layer_puller
        self._proxies = proxies

    def into(self, snapshotter: str, name: Reference, found: Found) -> "ProxiedLayers | None":
        """Return an image's layers, to be pulled into that snapshotter; None if it is no proxy."""
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
        return ProxiedLayers(self, proxy, wanted)

    def pull_all(
        self, proxy: Proxy, wanted: Sequence[Wanted], image: NewImage, documents: Mapping[str, int], pull: Pull
    ) -> None:
        """Have every layer there, and the image recorded."""
        blobs = dict(documents)
        fetch = partial(self._layer_puller.downloading, pull=pull, patience=pull.patience)
        with Ahead(wanted, fetch, pull.progress) as ahead:
            for position, each in enumerate(wanted):
                with self._proxies.working(proxy.name, each.layer.chain_id, pull.patience):
                    if self._pull(proxy, each, pull, partial(ahead.begin, position)):
                        blobs[each.layer.digest] = each.layer.size
                ahead.end(each.layer)
        pull.progress.state = PullState.COMMITTING
        self._layer_puller.keep(blobs, pull)
        self._store.add_image(image)

    def _pull(self, proxy: Proxy, wanted: Wanted, pull: Pull, left: Callable[[], None]) -> bool:
        """Have one layer there and return whether its blob was fetched for that; `left` is called before it is."""
        layer, patience = wanted.layer, pull.patience
        if proxy.has(layer.chain_id, patience):
            self._store.add_proxied(proxy.name, layer.chain_id, wanted.parent)
            return self._there("present", layer, pull)
        self._store.add_proxied(proxy.name, layer.chain_id, wanted.parent)
        extraction = Extraction(proxy, self._client, wanted, patience)
        try:
            extraction.begin()
            left()
            self._unpack(extraction, layer, pull)
            extraction.commit()
        except Taken:
            logger.info("layer taken by its snapshotter", extra={"digest": layer.digest, "snapshotter": proxy.name})
            return self._there("lazy", layer, pull)
        except BaseException:
            extraction.abandon()
            raise
        self._measure(proxy, layer.chain_id)
        telemetry.LAYERS.labels("unpacked").inc()
        return True

    def _there(self, origin: str, layer: Layer, pull: Pull) -> bool:
        telemetry.LAYERS.labels(origin).inc()
        # In place of the one that a download which began ahead, and is not wanted after all, may still write.
        shown = LayerProgress(layer.digest, layer.size, LayerState.PRESENT, layer.size, chain_id=layer.chain_id)
        pull.progress.show(shown)
        return False

    def _unpack(self, extraction: Extraction, layer: Layer, pull: Pull) -> None:
        job = self._layer_puller.unpacking(layer, 0, pull, extraction, pull.patience)
        pull.progress.show(job.progress)
        job.run()

    def _measure(self, proxy: Proxy, chain_id: str) -> None:
        try:
            found = proxy.usage(chain_id)
        except BulkheadError as error:
            logger.info("usage of layer %s: %s", chain_id, error)
            return
        self._store.measure_proxied(proxy.name, chain_id, found.bytes, found.inodes)


class ProxiedLayers:
    """One image's layers for one snapshotter; stands in for `image_svc.pulling.layers.LayerPuller`."""

    def __init__(self, puller: ProxiedLayerPuller, proxy: Proxy, wanted: Sequence[Wanted]) -> None:
        self._puller = puller
        self._proxy = proxy
        self._wanted = wanted

    def pull_all(self, image: NewImage, documents: Mapping[str, int], pull: Pull) -> None:
        """Have every layer in the snapshotter, and the image recorded."""
        self._puller.pull_all(self._proxy, self._wanted, image, documents, pull)
