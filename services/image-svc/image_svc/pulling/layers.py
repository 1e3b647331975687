"""An image's layers: all that are missing are fetched and unpacked side by side, and committed from the base up."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError, Internal
from bulkhead.metrics import stage
from image_svc import telemetry
from image_svc.decryption.gatekeeper import Gatekeeper
from image_svc.ingest import Content
from image_svc.patience import Patience
from image_svc.pulling.download import Download, Origin
from image_svc.pulling.progress import LayerState, Progress, PullState
from image_svc.pulling.shared_jobs import Jobs, all_done
from image_svc.pulling.turns import Turns
from image_svc.pulling.unpacking import Unpacker, Unpacking, despite_kills
from image_svc.pulling.writeback import Writeback
from image_svc.purpose import Purpose
from image_svc.registry.repository import Descriptor
from image_svc.slots import Slots
from image_svc.store import Layer, NewImage, NewLayer, Store
from image_svc.unpack.client import UnpackClient
from image_svc.unpack.protocol import DiskFull, Limits
from image_svc.upkeep.damage import Damage

#: Downloads of one pull at once where the configuration sets no limit.
_UNLIMITED = 64


@dataclass(frozen=True)
class Pull:
    """What one pull gives to each of its layers."""

    origin: Origin
    #: Its downloads at a time.
    slots: Slots
    patience: Patience
    progress: Progress
    #: What it calls the image, and for whom it is: an encrypted layer's use is recorded by them.
    image: str
    purpose: Purpose
    #: When it began, and the jobs of others that it joined (`time.monotonic()`).
    begun: list[float] = field(default_factory=lambda: [time.monotonic()])


class LayerPuller:
    """Pulls layers; any number of pulls at once share what they have in common, and the node's budget for unpacking."""

    def __init__(
        self, config: Config, content: Content, store: Store, client: UnpackClient, gatekeeper: Gatekeeper
    ) -> None:
        self._gatekeeper = gatekeeper
        self._config = config
        self._content = content
        self._store = store
        self._client = client
        #: Downloads and unpackings under way, keyed ("blob", digest) and ("layer", chain id).
        self.jobs = Jobs()
        self._damage = Damage(store, content, client)
        self._writeback = Writeback(content, client)
        self._turns = Turns(config.bulkhead.unpack_slots or _slots())
        self._limits = Limits(
            entries=config.bulkhead.unpack_max_entries,
            bytes=config.bulkhead.unpack_max_bytes,
            seconds=config.bulkhead.unpack_timeout,
        )

    def pull_of(self, image: str, origin: Origin, patience: Patience, progress: Progress, purpose: Purpose) -> Pull:
        """Return what the layers of one pull share."""
        slots = Slots(self._config.images.max_concurrent_downloads or _UNLIMITED)
        return Pull(origin, slots, patience, progress, image, purpose)

    def pull_all(self, image: NewImage, documents: Mapping[str, int], pull: Pull) -> None:
        """Have every layer unpacked, and the image recorded; the caller's lease holds what it is made of.

        `documents` are blobs that the pull stored and nobody recorded yet, sizes by digest.
        """
        progress = pull.progress
        missing = self._missing(image.layers)
        if len(missing) < len(image.layers) and self._damage.layers():
            missing = self._missing(image.layers)
        chains = {layer.chain_id for layer in missing}
        for shown in progress.layers:
            if shown.chain_id not in chains:
                shown.state, shown.received = LayerState.PRESENT, shown.size
        telemetry.LAYERS.labels("present").inc(len(image.layers) - len(missing))
        try:
            with ExitStack() as stack:
                jobs = self._unpack_all(missing, pull, stack)
                progress.state = PullState.COMMITTING
                self._commit(image, documents, jobs, pull)
        except DiskFull as error:
            raise DiskFull(f"{error}; {self._shortage(progress)}") from error
        telemetry.LAYERS.labels("unpacked").inc(len(missing))

    def _missing(self, layers: Sequence[Layer]) -> list[Layer]:
        return [layer for layer in layers if self._store.layer(layer.chain_id) is None]

    def keep(self, blobs: Mapping[str, int], pull: Pull) -> None:
        """Make blobs that a pull downloaded, sizes by digest, durable and record them, without an image."""
        self._make_durable(blobs, pull)
        self._store.add_blobs(blobs)

    def _unpack_all(self, missing: list[Layer], pull: Pull, stack: ExitStack) -> dict[str, Unpacking]:
        """Unpack layers, or wait for pulls that do; a failure that is another pull's is tried again on our own.

        The largest goes first: begun last, it would be alone at the end.
        """
        jobs: dict[str, Unpacking] = {}
        foreign: set[str] = set()
        leave: dict[str, Callable[[], None]] = {}
        names = dict(zip((m.chain_id for m in missing), self._store.new_names(len(missing)), strict=True))
        by_size = sorted(missing, key=lambda each: each.size, reverse=True)
        while True:
            for layer in by_size:
                if layer.chain_id in jobs:
                    continue
                make = partial(self._own, layer, names[layer.chain_id], pull)
                entered = ExitStack()
                stack.push(entered)
                job, mine = entered.enter_context(self.jobs.join(("layer", layer.chain_id), make, pull.patience))
                assert isinstance(job, Unpacking)
                leave[layer.chain_id] = entered.close
                jobs[layer.chain_id] = job
                pull.begun.append(job.began)
                pull.progress.show(job.progress)
                if not mine:
                    foreign.add(layer.chain_id)
            try:
                pull.patience.wait(all_done([job.future for job in jobs.values()]))
            except BulkheadError:
                pull.patience.check()
                failed = {chain_id for chain_id, job in jobs.items() if job.failed}
                if failed - foreign:
                    raise
                telemetry.RETRIES.labels("shared").inc(len(failed))
                for chain_id in failed:
                    del jobs[chain_id]
                    leave.pop(chain_id)()
                    foreign.discard(chain_id)
                continue
            return jobs

    def _own(self, layer: Layer, name: int, pull: Pull) -> Unpacking:
        patience = Patience(self._config.bulkhead.pull_timeout, f"layer {layer.digest}")
        return self.unpacking(layer, name, pull, self._client, patience)

    def unpacking(self, layer: Layer, name: int, pull: Pull, unpacker: Unpacker, patience: Patience) -> Unpacking:
        """Return the job, not begun, that fetches a layer and has it unpacked under that name."""
        open_blob = partial(self.downloading, layer, pull, patience)
        decoder = self._gatekeeper.decoder(layer, pull.image, pull.purpose)
        return Unpacking(layer, name, open_blob, unpacker, self._limits, self._turns, patience, decoder)

    @contextmanager
    def downloading(
        self, wanted: Layer | Descriptor, pull: Pull, patience: Patience, avoid: tuple[str, ...] = ()
    ) -> Iterator[tuple[Download, bool]]:
        """Yield a blob's download and whether it is this pull's: one for all who want the blob, as long as any does.

        One that is begun here avoids those hosts where it can.
        """
        blob = Descriptor(wanted.digest, wanted.size, wanted.media_type)

        def make() -> Download:
            own = Patience(self._config.bulkhead.pull_timeout, f"download of {wanted.digest}")
            try:
                return Download(blob, pull.origin, self._content, pull.slots, own, avoid)
            except OSError as error:  # no room for one more file, or no descriptor
                raise telemetry.disk_failure(f"download of {wanted.digest}", error) from error

        with self.jobs.join(("blob", wanted.digest), make, patience) as (download, _):
            assert isinstance(download, Download)
            pull.begun.append(download.began)
            yield download, download.origin is pull.origin

    def _shortage(self, progress: Progress) -> str:
        """Say how much room a pull that met a full disk still needs, as far as can be known: layers grow unpacked."""
        wanted = 0
        for layer in progress.layers:
            if layer.state not in (LayerState.PRESENT, LayerState.UNPACKED):
                wanted += (layer.size - layer.received) + (layer.size - layer.unpacked)
        found = os.statvfs(self._config.root)
        missing = max(wanted - found.f_bavail * found.f_frsize, found.f_frsize)
        return f"at least {missing} bytes are missing on the file system of {self._config.root}"

    # Commit

    def _commit(self, image: NewImage, documents: Mapping[str, int], jobs: dict[str, Unpacking], pull: Pull) -> None:
        """Settle the new layers from the base up, make everything durable, then let it count, all at once."""
        new = self._settle(image.layers, jobs, pull.patience) if jobs else []
        blobs = {**documents, **{job.layer.digest: job.layer.size for job in jobs.values()}}
        self._make_durable(blobs, pull)
        kept = self._store.add_image(image, new, blobs)
        for job in jobs.values():
            job.committed = job.committed or job.name in kept

    def _settle(self, layers: Sequence[Layer], jobs: dict[str, Unpacking], patience: Patience) -> list[NewLayer]:
        """Settle the chain and return what is new of it."""
        chain: list[str] = []
        parent, new = "", []
        with ExitStack() as held:
            for layer in layers:
                known = self._store.layer(layer.chain_id)
                name = known.name if known else jobs[layer.chain_id].name
                if known is None:
                    job = jobs[layer.chain_id]
                    held.enter_context(
                        job.settling
                    )  # chains that share a layer share all those below it, in this order
                    unpacked = job.future.result()
                    new.append(NewLayer(layer.chain_id, parent, layer.diff_id, name, unpacked.bytes, unpacked.inodes))
                chain.append(str(name))
                parent = layer.chain_id
            despite_kills(partial(self._client.settle, chain), patience, self._client)
        return new

    def _make_durable(self, blobs: Mapping[str, int], pull: Pull) -> None:
        if not blobs:
            return
        for digest in blobs:
            self._content.keep(digest)
        act = partial(self._writeback.wait, pull.patience, min(pull.begun))
        try:
            with stage("pull_sync"):
                despite_kills(act, pull.patience, self._client)
        except (DiskFull, Internal):
            # What the disk did not take looks whole until it is read from there: the next pull shall fetch it again.
            for digest in blobs.keys() - self._store.blobs():
                self._content.remove(digest)
            raise


def _slots() -> int:
    """Return how many layers to unpack at a time on this machine: each keeps two processes busy."""
    return max(2, len(os.sched_getaffinity(0)))
