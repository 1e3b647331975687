"""The read model: every image as lists show it, built once for each change of the store."""

import threading
from collections.abc import Iterable

from bulkhead.errors import InvalidArgument, NotFound
from bulkhead.proto.runtime.v1 import api_pb2
from image_svc import reference, telemetry
from image_svc.store import Image, Store

_HEX = frozenset("0123456789abcdef")


class Catalogue:
    """Answers lists, look-ups by id, prefix or name, from memory."""

    def __init__(self, store: Store, pinned: Iterable[str]) -> None:
        self._store = store
        self._pinned = {str(reference.parse(name)) for name in pinned if name}
        self._lock = threading.Lock()
        self._generation = -1
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self._messages: dict[str, api_pb2.Image] = {}

    def images(self) -> list[Image]:
        """Return every image, the one pulled last at the end."""
        self._refresh()
        return list(self._images.values())

    def messages(self) -> list[api_pb2.Image]:
        """Return every image as the CRI has it."""
        self._refresh()
        return list(self._messages.values())

    def message(self, image: Image) -> api_pb2.Image:
        """Return one image as the CRI has it."""
        found = self._messages.get(image.id)
        return found if found is not None else _message(image)

    def find(self, text: str) -> Image:
        """Return the image of an id (with or without "sha256:"), a unique prefix of one, or a name.

        NotFound names the text; a text that is neither is InvalidArgument.
        """
        self._refresh()
        digits = text.removeprefix("sha256:")
        if digits and set(digits) <= _HEX:
            matches = [image for image in self._images.values() if image.id.startswith(f"sha256:{digits}")]
            if len(matches) == 1:
                return matches[0]
            if len(matches) > 1 and f"docker.io/library/{text}:latest" not in self._names:
                raise InvalidArgument(f"image id {text!r} is the beginning of {len(matches)} ids")
            if text.startswith("sha256:") or len(digits) == 64:
                raise NotFound(f"image {text!r} is not here")
        name = reference.parse(text)
        found = self._names.get(str(name))
        if found is None:
            raise NotFound(f"image {text!r} is not here")
        return self._images[found]

    def try_find(self, text: str) -> Image | None:
        """Return the image, or None for one that is not here."""
        try:
            return self.find(text)
        except NotFound:
            return None

    def _refresh(self) -> None:
        if self._generation == self._store.generation:
            return
        with self._lock:
            generation = self._store.generation
            images = {image.id: image for image in self._load()}
            self._messages = {image.id: _message(image) for image in images.values()}
            self._names = {name: image.id for image in images.values() for name in image.names}
            self._images = images
            self._generation = generation
            telemetry.IMAGES.set(len(images))

    def _load(self) -> Iterable[Image]:
        grouped: dict[str, list[tuple[str, str, str, str, int, bool, str]]] = {}
        for row in self._store.image_rows():
            grouped.setdefault(row[0], []).append(row)
        for image_id, rows in grouped.items():
            names = [row[6] for row in rows]
            yield Image(
                id=image_id,
                repo_tags=tuple(name for name in names if "@" not in name),
                repo_digests=tuple(name for name in names if "@" in name),
                manifests={row[6]: row[3] for row in rows},
                size=max(row[4] for row in rows),
                user=rows[0][2],
                chain_id=rows[0][1],
                pinned=any(name in self._pinned for name in names),
                encrypted=frozenset(row[3] for row in rows if row[5]),
            )


def _message(image: Image) -> api_pb2.Image:
    made = api_pb2.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        pinned=image.pinned,
    )
    user = image.user.partition(":")[0]
    if user.isascii() and user.isdigit() and int(user) < 2**31:
        made.uid.value = int(user)
    elif user:
        made.username = user
    return made
