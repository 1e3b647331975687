"""The keys that are loaded and the files that could not be."""

import logging
from collections import Counter
from dataclasses import dataclass

from prometheus_client import Gauge

from decryptor.files import KeyFile
from decryptor.recognise import NEEDS_PASSWORD, Key, recognise

logger = logging.getLogger(__name__)

KEYS = Gauge("bulkhead_decryptor_keys", "Key files by state: loaded, needs_password, failed.", ["state"])


@dataclass(frozen=True)
class Entry:
    """One key file and what was found in it."""

    file: str
    key: Key

    @property
    def state(self) -> str:
        """`loaded`, `needs_password` or `failed`."""
        if not self.key.error:
            return "loaded"
        return "needs_password" if self.key.error == NEEDS_PASSWORD else "failed"


class Keyring:
    """All key files, in order of their names. One bad file disables that key alone."""

    def __init__(self, files: list[KeyFile]) -> None:
        self.entries = [
            Entry(file.name, Key(error=file.error) if file.error else recognise(file.data)) for file in files
        ]

    def kinds(self) -> Counter[str]:
        """Return how many usable keys of each kind there are."""
        return Counter(entry.key.kind for entry in self.entries if not entry.key.error)

    def describe(self) -> str:
        """Return the usable keys as words for an error: `2 private-key, 1 certificate` or `none`."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds().items())) or "none"

    def complaints(self) -> list[str]:
        """Return one line for each file that cannot be used."""
        return [f"key file {entry.file!r}: {entry.key.error}" for entry in self.entries if entry.key.error]

    def publish(self) -> None:
        """Set the metrics and write one log line a file."""
        states = Counter(entry.state for entry in self.entries)
        for state in ("loaded", "needs_password", "failed"):
            KEYS.labels(state).set(states[state])
        for entry in self.entries:
            if entry.key.error:
                logger.warning("key file %r cannot be used: %s", entry.file, entry.key.error)
            else:
                logger.info("key file %r: %s %s", entry.file, entry.key.kind, entry.key.fingerprint or "(by kind only)")
