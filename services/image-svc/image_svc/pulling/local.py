"""An image whose blobs are all in the content store, seen as if it came from a registry."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from bulkhead.errors import FailedPrecondition
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.registry.repository import Descriptor


class LocalContent:
    """Has nothing to give: whatever is asked of it is missing in the content store, and said to be."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    @contextmanager
    def held(self) -> Iterator[None]:
        """There is no connection to keep."""
        yield

    def manifest(self, wanted: Descriptor, patience: Patience) -> tuple[bytes, str]:
        """Say that it is missing."""
        raise self._missing(wanted)

    def small_blob(self, wanted: Descriptor, limit: int, patience: Patience) -> bytes:
        """Say that it is missing."""
        raise self._missing(wanted)

    def download(
        self,
        wanted: Descriptor,
        have: Callable[[], int],
        write: Callable[[memoryview], None],
        patience: Patience,
        avoid: Collection[str] = (),
    ) -> str:
        """Say that it is missing."""
        raise self._missing(wanted)

    def _missing(self, wanted: Descriptor) -> FailedPrecondition:
        return FailedPrecondition(f"{self.reference.name}@{wanted.digest} is not in the content store, or not whole")
