"""How far pulls are: written by the jobs that do the work, read by whoever watches, without a lock between them.

A layer that several pulls want is one job and one `LayerProgress`, which each pull's `Progress` refers to. Counters
only grow while a job runs; a reader sees each value as of now, not all of them as of one moment.
"""

import enum
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bulkhead.errors import BulkheadError


class LayerState(enum.Enum):
    """What happens to a layer; in this order, except that a layer may fail at any time or be present from the start."""

    #: Another pull or the limits on downloads and unpackings are to be waited for.
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    #: Every byte of the blob is here, and its files are still being written.
    UNPACKING = "unpacking"
    #: Unpacked and checked; it counts once the pull is done.
    UNPACKED = "unpacked"
    #: It was here before the pull.
    PRESENT = "present"
    FAILED = "failed"


@dataclass(slots=True)
class LayerProgress:
    """One layer, written by its job."""

    digest: str
    #: Bytes of the blob, as the manifest says.
    size: int
    state: LayerState = LayerState.WAITING
    #: Bytes of the blob that are here, those of earlier attempts included.
    received: int = 0
    #: Bytes of them that were here before this job.
    resumed: int = 0
    #: Bytes of the blob that the unpack helper has taken.
    unpacked: int = 0
    #: What the layer is known by when it is unpacked, since a blob may occur twice in one image; "" for other blobs.
    chain_id: str = ""


class PullState(enum.Enum):
    """What a pull is doing."""

    RESOLVING = "resolving"
    #: The image is checked (signatures, keys) before any of its layers is unpacked.
    CHECKING = "checking"
    #: Layers are downloaded and unpacked.
    FETCHING = "fetching"
    #: Layers are settled, written to disk and recorded.
    COMMITTING = "committing"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Progress:
    """One pull, from its request to its end."""

    reference: str
    state: PullState = PullState.RESOLVING
    #: Base first; empty until the manifest is known.
    layers: tuple[LayerProgress, ...] = ()
    #: Seconds since 1970.
    began: float = field(default_factory=time.time)
    #: The image's id, once it is known.
    image_id: str = ""
    #: Why it failed.
    error: BulkheadError | None = None
    #: Set at the end, whatever the end is.
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def total(self) -> int:
        """Bytes of all blobs of layers; 0 until the manifest is known."""
        return sum(layer.size for layer in self.layers)

    @property
    def received(self) -> int:
        """Bytes of them that are here."""
        return sum(layer.received for layer in self.layers)

    def show(self, job: LayerProgress) -> None:
        """Show a job's progress, which another pull may have begun, in place of that layer's so far."""
        self.layers = tuple(job if each.chain_id == job.chain_id else each for each in self.layers)


class Pulls:
    """The pulls under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: list[Progress] = []

    def current(self) -> list[Progress]:
        """Return them, the oldest first."""
        with self._lock:
            return list(self._current)

    @contextmanager
    def shown(self, progress: Progress) -> Iterator[Progress]:
        """List a pull during the block, whose end or error becomes the pull's."""
        with self._lock:
            self._current.append(progress)
        try:
            yield progress
            progress.state = PullState.DONE
        except BaseException as error:
            progress.error = error if isinstance(error, BulkheadError) else None
            progress.state = PullState.FAILED
            raise
        finally:
            with self._lock:
                self._current = [each for each in self._current if each is not progress]
            progress.ended.set()
