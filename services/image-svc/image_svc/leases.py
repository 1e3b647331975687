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
        self._lock = threading.Lock()
        self._claims: Counter[str] = Counter()

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Yield a lease whose claims end with the block."""
        made = Lease(self)
        try:
            yield made
        finally:
            with self._lock:
                self._claims.subtract(made.claimed)
                self._claims += Counter()  # drops what has reached zero

    def add(self, keys: tuple[str, ...]) -> None:
        """Count claims."""
        with self._lock:
            self._claims.update(keys)

    def unless_claimed(self, key: str, act: Callable[[], bool]) -> bool:
        """Return what a short act says that runs while nobody can claim the key; False, undone, if somebody has."""
        with self._lock:
            if self._claims[key]:
                return False
            return act()
