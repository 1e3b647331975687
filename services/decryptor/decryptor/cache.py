"""What was found out a moment ago: that a key opens a layer. No key material is kept."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

#: Entries; a node runs a few hundred pods of a few layers.
LIMIT = 8192


@dataclass(frozen=True)
class Found:
    """The scheme and key that opened a layer."""

    scheme: str
    fingerprint: str


class Cache:
    """Remembers for `seconds`; 0 remembers nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._entries: OrderedDict[bytes, tuple[float, Found]] = OrderedDict()
        self._lock = threading.Lock()
        self._generation = 0

    @property
    def generation(self) -> int:
        """A number that clear() changes; what was found out under an older one is not to be remembered."""
        return self._generation

    def get(self, key: bytes) -> Found | None:
        """Return what is known, if it is not too old."""
        with self._lock:
            end, found = self._entries.get(key, (0.0, None))
        return found if time.monotonic() < end else None

    def put(self, key: bytes, found: Found, generation: int) -> None:
        """Remember, unless the keys have changed since `generation`."""
        if self._seconds <= 0:
            return
        with self._lock:
            if generation == self._generation:
                self._entries[key] = (time.monotonic() + self._seconds, found)
                self._entries.move_to_end(key)
                while len(self._entries) > LIMIT:
                    self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: the keys have changed."""
        with self._lock:
            self._generation += 1
            self._entries.clear()
