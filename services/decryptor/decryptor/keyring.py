"""The keys that are loaded and the files that could not be."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import Gauge

from decryptor.complaints import NEEDS_PASSWORD
from decryptor.files import KeyFile
from decryptor.recognise import CERTIFICATE, JWK, PRIVATE_KEY, Key, recognise

logger = logging.getLogger(__name__)

KEYS = Gauge("bulkhead_decryptor_keys", "Key files by state: loaded, needs_password, failed.", ["state"])

#: What stands beside a protected key under its name with this ending is its password, line end at the end removed.
PASSWORD_SUFFIX = ".password"  # noqa: S105 # the name of a file


@dataclass(frozen=True)
class Entry:
    """One key and the file it was found in."""

    file: str
    key: Key

    @property
    def state(self) -> str:
        """`loaded`, `needs_password` or `failed`."""
        if not self.key.error:
            return "loaded"
        return "needs_password" if self.key.error == NEEDS_PASSWORD else "failed"


class Keyring:
    """All keys, in order of their files' names. One bad file disables that key alone."""

    def __init__(self, files: Iterable[KeyFile]) -> None:
        by_name = {file.name: file for file in files}
        self.entries = [Entry(name, key) for name in by_name for key in _keys(name, by_name)]

    def usable(self, *kinds: str) -> Iterator[Entry]:
        """Yield the keys of these kinds that can be used."""
        return (entry for entry in self.entries if not entry.key.error and entry.key.kind in kinds)

    def private(self) -> Iterator[Entry]:
        """Yield the asymmetric private keys, from PEM, DER and JWK alike."""
        return self.usable(PRIVATE_KEY, JWK)

    def certificates(self) -> Iterator[Entry]:
        """Yield the certificates."""
        return self.usable(CERTIFICATE)

    def kinds(self) -> Counter[str]:
        """Return how many usable keys of each kind there are."""
        return Counter(entry.key.kind for entry in self.entries if not entry.key.error)

    def describe(self) -> str:
        """Return the usable keys as words for an error: `2 private-key, 1 certificate` or `none`."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds().items())) or "none"

    def complaints(self) -> list[str]:
        """Return one line for each file that cannot be used."""
        return [f"key file {entry.file!r}: {entry.key.error}" for entry in self.entries if entry.key.error]

    def publish(self, before: "Keyring | None" = None) -> None:
        """Set the metrics and write one log line for each key, or for each that is new or gone since `before`."""
        states = Counter(entry.state for entry in self.entries)
        for state in ("loaded", "needs_password", "failed"):
            KEYS.labels(state).set(states[state])
        known = set(before.entries) if before else set[Entry]()
        for entry in self.entries:
            if entry in known:
                continue
            if entry.key.error:
                logger.warning("key file %r cannot be used: %s", entry.file, entry.key.error)
            else:
                logger.info("key file %r: %s %s", entry.file, entry.key.kind, entry.key.fingerprint or "(by kind only)")
        for entry in known - set(self.entries):
            logger.info("key file %r is gone: %s %s", entry.file, entry.key.kind, entry.key.fingerprint)


def _keys(name: str, files: dict[str, KeyFile]) -> Iterator[Key]:
    """Yield what one file holds; nothing for a password that stands beside its key."""
    file = files[name]
    if name.endswith(PASSWORD_SUFFIX):
        if name.removesuffix(PASSWORD_SUFFIX) not in files:
            yield Key(error="a password without a key file beside it")
        return
    if file.error:
        yield Key(error=file.error)
        return
    beside = files.get(name + PASSWORD_SUFFIX)
    found = recognise(file.data, password(beside.data) if beside else None)
    if found.error == NEEDS_PASSWORD and beside and beside.error:
        found = Key(found.kind, error=f"needs a password, and {beside.name!r} cannot be used: {beside.error}")
    yield found
    yield from found.also


def password(data: bytes) -> bytes:
    """Return a password out of its file: everything but one line end at the end."""
    return data.removesuffix(b"\n").removesuffix(b"\r")
