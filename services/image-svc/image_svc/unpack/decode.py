"""Decompresses one layer blob: in a process of its own, that may do nothing but read the blob and fill shared memory.

libisal and libzstd read what anybody may have written. Here they hold no capability, no file and no credential, and
what they make of the blob is hashed by the process that unpacks it.
"""

from typing import Any

from bulkhead.errors import BulkheadError
from image_svc.decompress import Descriptor, TarReader
from image_svc.unpack.ring import Ring


def decode(source: int, ring: Ring) -> dict[str, Any]:
    """Decompress the blob behind descriptor `source` into the ring, to its end or until nobody reads any more."""
    try:
        reader = TarReader(Descriptor(source), "layer")
        count = -1
        while count:
            count = reader.fill(ring.slot())
            ring.filled(count)
    except BrokenPipeError:
        pass
    except BulkheadError as error:
        ring.fail(str(error))
    except MemoryError:
        ring.fail("layer: decompressing it takes more memory than it may")
    return {}
