"""What image-svc counts, and how an error of the disk is told."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge

from bulkhead.errors import BulkheadError, Internal, ResourceExhausted
from image_svc.unpack.protocol import DiskFull

PULLS = Counter(
    "bulkhead_image_pulls_total", "Image pulls by outcome: ok, or the error's code in lower case.", ["outcome"]
)
PULLED_BYTES = Counter("bulkhead_image_pulled_bytes_total", "Bytes of blobs received from registries.")
RESUMED_BYTES = Counter(
    "bulkhead_image_resumed_bytes_total",
    "Bytes of blobs that an earlier attempt had left and that were not fetched again.",
)
RETRIES = Counter(
    "bulkhead_image_pull_retries_total",
    "Steps of pulls that were tried again, by reason: registry (all its hosts were asked once more), unpacker (it was"
    " killed), corrupt (a blob of another digest), shared (a pull that this one waited for had failed).",
    ["reason"],
)
PULLING = Gauge("bulkhead_image_pulls_in_progress", "Image pulls under way.")
LAYERS = Counter(
    "bulkhead_image_layers_total",
    "Layers of pulled images by origin: unpacked, present, lazy (a proxy snapshotter fetches what is read of them).",
    ["origin"],
)
REMOVED = Counter(
    "bulkhead_image_garbage_total", "Things collected as garbage: blob, layer, partial, snapshot.", ["kind"]
)
DAMAGED = Counter(
    "bulkhead_image_damaged_total",
    "What was stored whole and found damaged or missing later, by kind: blob, configuration, layer.",
    ["kind"],
)
IMAGES = Gauge("bulkhead_images", "Images in the store.")


@contextmanager
def outcome(what: str) -> Iterator[None]:
    """Count how a pull ends; a failure of the disk is raised as one that names it."""
    try:
        yield
    except BulkheadError as error:
        PULLS.labels(error.name.lower()).inc()
        raise
    except OSError as error:
        failure = disk_failure(what, error)
        PULLS.labels(failure.name.lower()).inc()
        raise failure from error
    PULLS.labels("ok").inc()


def disk_failure(what: str, error: OSError) -> BulkheadError:
    """Return the error for a failed file operation: a full disk is ResourceExhausted, the rest is Internal."""
    kinds: dict[int | None, type[BulkheadError]] = {errno.ENOSPC: DiskFull, errno.EDQUOT: DiskFull}
    kinds[errno.EFBIG] = ResourceExhausted
    file = f"{error.filename}: " if error.filename else ""
    return kinds.get(error.errno, Internal)(f"{what}: {file}{error.strerror or error}")
