"""What pulls under way rely on, so that the garbage collector leaves it alone, and never makes a pull wait."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Lease:
    """What one pull has claimed so far."""

    def __init__(self, leases: "Leases") -> None:
        self._leases = leases
        self.claimed: list[str] = []

    def claim(self, *keys: str) -> None:
        """Keep blobs (by digest) and layers (by chain id) from collection. Claim first, then look for them."""
        self._leases.add(keys)
        self.claimed.extend(keys)


class Leases:
    """The claims of all pulls."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._claims: Counter[str] = Counter()
        #: What is being removed at this moment.
        self._going: set[str] = set()

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Yield a lease whose claims end with the block."""
        made = Lease(self)
        try:
            yield made
        finally:
            with self._changed:
                self._claims.subtract(made.claimed)
                self._claims += Counter()  # drops what has reached zero

    def add(self, keys: tuple[str, ...]) -> None:
        """Count claims; who wants the very thing that is being removed waits until it is gone, and nobody else does."""
        wanted = set(keys)
        with self._changed:
            self._changed.wait_for(lambda: self._going.isdisjoint(wanted))
            self._claims.update(keys)

    def unless_claimed(self, key: str, act: Callable[[], bool]) -> bool:
        """Return what a short act says that runs while nobody can claim the key; False, undone, if somebody has."""
        with self._changed:
            if self._claims[key] or key in self._going:
                return False
            self._going.add(key)
        try:
            return act()
        finally:
            with self._changed:
                self._going.discard(key)
                self._changed.notify_all()
