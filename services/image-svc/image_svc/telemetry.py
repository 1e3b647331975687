"""What image-svc counts, and how an error of the disk is told."""

import errno

from prometheus_client import Counter, Gauge

from bulkhead.errors import BulkheadError, Internal, ResourceExhausted

PULLS = Counter(
    "bulkhead_image_pulls_total", "Image pulls by outcome: ok, or the error's code in lower case.", ["outcome"]
)
PULLED_BYTES = Counter("bulkhead_image_pulled_bytes_total", "Bytes of blobs received from registries.")
PULLING = Gauge("bulkhead_image_pulls_in_progress", "Image pulls under way.")
LAYERS = Counter("bulkhead_image_layers_total", "Layers of pulled images by origin: unpacked, present.", ["origin"])
REMOVED = Counter(
    "bulkhead_image_garbage_total", "Things collected as garbage: blob, layer, partial, snapshot.", ["kind"]
)
IMAGES = Gauge("bulkhead_images", "Images in the store.")


def disk_failure(what: str, error: OSError) -> BulkheadError:
    """Return the error for a failed file operation: a full disk is ResourceExhausted, the rest is Internal."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    file = f"{error.filename}: " if error.filename else ""
    return (ResourceExhausted if full else Internal)(f"{what}: {file}{error.strerror or error}")
