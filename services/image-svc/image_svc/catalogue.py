"""The read model: every image as lists show it.

Whoever changes the store builds it anew before going on, so that a list or a look-up waits for nobody: neither for the
disk, nor, a row at a time, for the interpreter's lock.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from bulkhead.errors import InvalidArgument, NotFound
from bulkhead.proto.runtime.v1 import api_pb2
from image_svc import telemetry
from image_svc.oci import reference
from image_svc.store import Image, Store

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class _View:
    """The store after one change; replaced as a whole, so that no look-up meets two of them."""

    images: dict[str, Image] = field(default_factory=dict)
    #: Id by name.
    names: dict[str, str] = field(default_factory=dict)
    messages: dict[str, api_pb2.Image] = field(default_factory=dict)


class Catalogue:
    """Answers lists, look-ups by id, prefix or name, from memory."""

    def __init__(self, store: Store, pinned: Iterable[str]) -> None:
        self._store = store
        self._pinned = {str(reference.parse(name)) for name in pinned if name}
        self._lock = threading.Lock()
        self._view = _View()
        store.listeners.append(self._refresh)
        self._refresh()

    def images(self) -> list[Image]:
        """Return every image, the one pulled last at the end."""
        return list(self._view.images.values())

    def messages(self) -> list[api_pb2.Image]:
        """Return every image as the CRI has it."""
        return list(self._view.messages.values())

    def message(self, image: Image) -> api_pb2.Image:
        """Return one image as the CRI has it."""
        found = self._view.messages.get(image.id)
        return found if found is not None else _message(image)

    def find(self, text: str) -> Image:
        """Return the image of an id (with or without "sha256:"), a name, or a unique prefix of an id.

        A name comes before a prefix, as under containerd: who asks for "cafe" means the image of that name. NotFound
        names the text; a text that is neither is InvalidArgument.
        """
        view = self._view
        if text in view.images:
            return view.images[text]
        digits = text.removeprefix("sha256:")
        hexadecimal = bool(digits) and set(digits) <= _HEX
        if not (hexadecimal and (text != digits or len(digits) == 64)):
            found = view.names.get(str(reference.parse(text)))
            if found is not None:
                return view.images[found]
        matches = [each for each in view.images.values() if hexadecimal and each.id.startswith(f"sha256:{digits}")]
        if len(matches) > 1:
            raise InvalidArgument(f"image id {text!r} is the beginning of {len(matches)} ids")
        if not matches:
            raise NotFound(f"image {text!r} is not here")
        return matches[0]

    def try_find(self, text: str) -> Image | None:
        """Return the image, or None for one that is not here."""
        try:
            return self.find(text)
        except NotFound:
            return None

    def _refresh(self) -> None:
        # Under the lock, so that of two changes the view built last is the one that saw both.
        with self._lock:
            images = {image.id: image for image in self._load()}
            names = {name: image.id for image in images.values() for name in image.names}
            messages = {image.id: _message(image) for image in images.values()}
            self._view = _View(images, names, messages)
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
    # Ten digits hold every 32-bit id; Python refuses to read thousands of them.
    if user.isascii() and user.isdigit() and len(user) <= 10 and int(user) < 2**31:
        made.uid.value = int(user)
    elif user:
        made.username = user
    return made
