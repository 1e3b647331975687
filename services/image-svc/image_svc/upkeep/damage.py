"""What was whole and is found not to be, long after it was stored: put aside, and the next pull brings it again.

Nothing is looked for at a start: a disk of images takes minutes to read. What is damaged is found by whoever needs it.
"""

import logging

from bulkhead.errors import DataLoss, NotFound
from image_svc import telemetry
from image_svc.ingest import Content
from image_svc.oci import digests
from image_svc.store import Store
from image_svc.unpack.client import UnpackClient

logger = logging.getLogger(__name__)


class Damage:
    """Finds and forgets what is damaged."""

    def __init__(self, store: Store, content: Content, client: UnpackClient) -> None:
        self._store = store
        self._content = content
        self._client = client

    def layers(self) -> list[str]:
        """Forget the layers whose directory is missing or not whole; return the images that must be pulled again.

        What is left of such a directory goes the way of all removed snapshots.
        """
        recorded = set(self._store.layer_names())
        found = dict(self._client.list())
        lost = {name for name in recorded if not found.get(str(name))}
        if not lost:
            return []
        images = self._store.forget_lost_layers(lost)
        for name in lost & set(map(int, found)):
            self._client.remove(str(name))
        telemetry.DAMAGED.labels("layer").inc(len(lost))
        for image_id in images:
            logger.error("image %s has lost a layer and must be pulled again", image_id)
        return images

    def configuration(self, image_id: str) -> bytes:
        """Return an image's configuration; if it is missing or not what it was, the image is forgotten: NotFound."""
        try:
            data = self._content.read(image_id)
            digests.verify(data, image_id, "content store")
        except (FileNotFoundError, DataLoss) as error:
            self._content.quarantine(image_id)
            telemetry.DAMAGED.labels("configuration").inc()
            self._store.remove_names([row[-1] for row in self._store.image_rows() if row[0] == image_id])
            logger.error("image %s has lost its configuration and must be pulled again", image_id)
            raise NotFound(f"image {image_id} has lost its configuration; pull the image again") from error
        return data
