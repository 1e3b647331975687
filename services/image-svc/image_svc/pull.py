"""PullImage: resolve, fetch, check, unpack every missing layer at once, commit from the base up."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError, Unimplemented
from bulkhead.metrics import stage
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc import media, platforms, reference, telemetry
from image_svc.decryption import Gatekeeper
from image_svc.download import Download
from image_svc.ingest import Content
from image_svc.layers import Unpacking
from image_svc.leases import Lease, Leases
from image_svc.metadata import Finder, Found
from image_svc.patience import Patience
from image_svc.platforms import Platform
from image_svc.reference import Reference
from image_svc.registry.repository import Descriptor, Repository, Retry
from image_svc.registry.stream import Rate
from image_svc.shared_jobs import Jobs, all_done
from image_svc.store import Layer, NewImage, NewLayer, Store
from image_svc.unpack.client import UnpackClient
from image_svc.unpack.protocol import Limits

logger = logging.getLogger(__name__)

#: Downloads of one pull at once where the configuration sets no limit.
_UNLIMITED = 64
#: Layers unpacked at once by all pulls: the helper takes 64 orders at a time, containers' among them.
_UNPACKINGS = 48


class Puller:
    """Pulls images into the store; any number of pulls at once share what they have in common."""

    def __init__(
        self,
        config: Config,
        content: Content,
        store: Store,
        client: UnpackClient,
        gatekeeper: Gatekeeper,
        leases: Leases,
        *,
        retry: Retry | None = None,
        host: Platform | None = None,
    ) -> None:
        self._config = config
        self._content = content
        self._store = store
        self._client = client
        self._gatekeeper = gatekeeper
        self._leases = leases
        self._retry = retry or _retry(config)
        self._host = host or platforms.current()
        self._jobs = Jobs()
        self._budget = threading.Semaphore(min(max(4 * config.images.max_concurrent_downloads, 8), _UNPACKINGS))
        self._limits = Limits(
            entries=config.bulkhead.unpack_max_entries,
            bytes=config.bulkhead.unpack_max_bytes,
            seconds=config.bulkhead.unpack_timeout,
        )

    @property
    def jobs(self) -> Jobs:
        """Downloads and unpackings under way, keyed ("blob", digest) and ("layer", chain id)."""
        return self._jobs

    def pull(self, image: str, auth: AuthConfig | None, patience: Patience, pod: str = "") -> str:
        """Pull an image completely and return its id; nothing of it is listed before that."""
        name = reference.parse(image)
        began = time.monotonic()
        with telemetry.PULLING.track_inprogress(), self._leases.lease() as lease:
            try:
                repository = Repository(name, self._config.images.registry, auth, retry=self._retry)
                with repository.held():
                    image_id, size = self._pull(name, repository, lease, patience, pod)
            except BulkheadError as error:
                telemetry.PULLS.labels(error.name.lower()).inc()
                raise
            except OSError as error:
                failure = telemetry.disk_failure(f"pull of {name}", error)
                telemetry.PULLS.labels(failure.name.lower()).inc()
                raise failure from error
        telemetry.PULLS.labels("ok").inc()
        seconds = round(time.monotonic() - began, 3)
        fields = {"reference": str(name), "image": image_id, "bytes": size, "seconds": seconds}
        logger.info("image pulled", extra=fields)
        return image_id

    def _pull(
        self, name: Reference, repository: Repository, lease: Lease, patience: Patience, pod: str
    ) -> tuple[str, int]:
        with stage("pull_resolve"):
            target = repository.resolve(patience)
            finder = Finder(repository, self._content, self._store, lease, patience)
            found = finder.find(target, self._host)
        if found.manifest.encrypted:
            self._gatekeeper.check(str(name), pod, found.layers, patience)
        with stage("pull_layers"):
            self._bring(found, repository, lease, patience)
        digest_name = str(name.with_digest(target.digest))
        self._store.add_image(
            NewImage(
                id=found.manifest.config.digest,
                manifest=found.descriptor.digest,
                media_type=found.descriptor.media_type,
                target=target.digest,
                size=found.manifest.size + found.descriptor.size,
                encrypted=found.manifest.encrypted,
                user=found.user,
                layers=found.layers,
                names=(digest_name,) if name.digest else (str(name), digest_name),
            )
        )
        return found.manifest.config.digest, found.manifest.size

    # Layers

    def _bring(self, found: Found, repository: Repository, lease: Lease, patience: Patience) -> None:
        """Unpack what is missing, all layers side by side, then settle and commit them in order."""
        lease.claim(*(layer.chain_id for layer in found.layers), *(layer.digest for layer in found.layers))
        missing = [layer for layer in found.layers if self._store.layer(layer.chain_id) is None]
        telemetry.LAYERS.labels("present").inc(len(found.layers) - len(missing))
        if not missing:
            return
        if locked := [layer for layer in missing if media.is_encrypted(layer.media_type)]:
            raise Unimplemented(f"layer {locked[0].digest}: a key is at hand, but decrypting layers is not built yet")
        slots = threading.Semaphore(self._config.images.max_concurrent_downloads or _UNLIMITED)
        with ExitStack() as stack:
            jobs = self._unpack_all(missing, repository, slots, stack, patience)
            self._commit(found.layers, jobs)
        telemetry.LAYERS.labels("unpacked").inc(len(missing))

    def _unpack_all(
        self,
        missing: list[Layer],
        repository: Repository,
        slots: threading.Semaphore,
        stack: ExitStack,
        patience: Patience,
    ) -> dict[str, Unpacking]:
        """Unpack layers, or wait for pulls that do; a failure that is another pull's is tried again on our own."""
        jobs: dict[str, Unpacking] = {}
        foreign: set[str] = set()
        leave: dict[str, Callable[[], None]] = {}
        names = dict(zip((m.chain_id for m in missing), self._store.new_names(len(missing)), strict=True))
        while True:
            for layer in missing:
                if layer.chain_id not in jobs:
                    make = partial(self._unpacking, layer, names[layer.chain_id], repository, slots)
                    entered = ExitStack()
                    stack.push(entered)
                    job, mine = entered.enter_context(self._jobs.join(("layer", layer.chain_id), make, patience))
                    assert isinstance(job, Unpacking)
                    leave[layer.chain_id] = entered.close
                    jobs[layer.chain_id] = job
                    if not mine:
                        foreign.add(layer.chain_id)
            try:
                patience.wait(all_done([job.future for job in jobs.values()]))
            except BulkheadError:
                patience.check()
                failed = {chain_id for chain_id, job in jobs.items() if job.failed}
                if failed - foreign:
                    raise
                for chain_id in failed:
                    del jobs[chain_id]
                    leave.pop(chain_id)()
                    foreign.discard(chain_id)
                continue
            return jobs

    def _unpacking(self, layer: Layer, name: int, repository: Repository, slots: threading.Semaphore) -> Unpacking:
        own = Patience(self._config.bulkhead.pull_timeout, f"layer {layer.digest}")
        open_blob = partial(self._downloading, layer, repository, slots, own)
        return Unpacking(layer, name, open_blob, self._client, self._limits, self._budget, own)

    @contextmanager
    def _downloading(
        self,
        layer: Layer,
        repository: Repository,
        slots: threading.Semaphore,
        patience: Patience,
        avoid: tuple[str, ...],
    ) -> Iterator[tuple[Download, bool]]:
        wanted = Descriptor(layer.digest, layer.size, layer.media_type)

        def make() -> Download:
            own = Patience(self._config.bulkhead.pull_timeout, f"download of {layer.digest}")
            return Download(wanted, repository, self._content, self._store, slots, own, avoid)

        with self._jobs.join(("blob", layer.digest), make, patience) as (download, mine):
            assert isinstance(download, Download)
            yield download, mine

    def _commit(self, layers: tuple[Layer, ...], jobs: dict[str, Unpacking]) -> None:
        """Settle the new layers from the base up, make everything durable, then let them count."""
        lower: list[str] = []
        parent, new = "", []
        for layer in layers:
            known = self._store.layer(layer.chain_id)
            name = known.name if known else jobs[layer.chain_id].name
            if known is None:
                job = jobs[layer.chain_id]
                unpacked = job.future.result()
                with job.settling:
                    self._client.settle(str(name), lower)
                new.append(NewLayer(layer.chain_id, parent, layer.diff_id, name, unpacked.bytes, unpacked.inodes))
            lower.append(str(name))
            parent = layer.chain_id
        with stage("pull_sync"):
            self._client.sync()
        kept = self._store.add_layers(new)
        for job in jobs.values():
            job.committed = job.committed or job.name in kept


def _retry(config: Config) -> Retry:
    window = 30.0
    progress = config.images.image_pull_progress_timeout
    return Retry(
        read_timeout=min(window, progress) if progress else window,
        rate=Rate(config.bulkhead.pull_minimum_rate, window),
    )
