"""What image-svc knows about images, in SQLite, and the read model that answers lists from memory."""

from image_svc.store.database import Store
from image_svc.store.kept import ContentName
from image_svc.store.model import Image, Layer, NewImage, NewLayer, Snapshot, StoredLayer

__all__ = ["ContentName", "Image", "Layer", "NewImage", "NewLayer", "Snapshot", "Store", "StoredLayer"]
