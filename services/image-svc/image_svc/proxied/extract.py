"""One layer on its way into a proxy snapshotter: prepared under a key of ours, unpacked there, committed."""

import itertools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from bulkhead.errors import AlreadyExists, BulkheadError, NotFound
from image_svc.patience import Patience
from image_svc.proxied import mounts
from image_svc.proxied.client import Proxy
from image_svc.proxied.labels import prepared
from image_svc.store import Layer
from image_svc.unpack.client import UnpackClient
from image_svc.unpack.protocol import Limits, Unpacked

logger = logging.getLogger(__name__)

#: Times that a snapshotter may say that a layer is there, and then not have it.
_TRIES = 3
#: Keys begin as containerd's do for what is being unpacked; the rest tells this process's from those of an earlier one.
PREFIX = "extract-"
_OURS = f"{PREFIX}{os.urandom(6).hex()}-"
_numbers = itertools.count(1)


def left_over(key: str) -> bool:
    """Tell whether a key is of a layer that an earlier process of Bulkhead's was unpacking."""
    return key.startswith(PREFIX) and not key.startswith(_OURS)


class Taken(BulkheadError):
    """The snapshotter has the layer by itself: nothing is to be unpacked."""


@dataclass(frozen=True)
class Wanted:
    """A layer, the chain id of the one beneath ("" for none), and what the snapshotter is told of it."""

    layer: Layer
    parent: str
    labels: Mapping[str, str]

    @property
    def for_lazy(self) -> bool:
        """Whether whoever made the image prepared the layer for snapshotters that fetch lazily."""
        return prepared(self.labels)


class Extraction:
    """Unpacks one layer through the unpack helper; each attempt has a fresh key, since a directory must be empty."""

    def __init__(self, proxy: Proxy, client: UnpackClient, wanted: Wanted, patience: Patience) -> None:
        self._proxy = proxy
        self._client = client
        self._wanted = wanted
        self._patience = patience
        self._key = ""
        self._place: mounts.Place | None = None

    def begin(self) -> None:
        """Have a directory prepared; Taken if the snapshotter has taken the layer instead."""
        chain = self._wanted.layer.chain_id
        for _ in range(_TRIES):
            self._key = f"{_OURS}{next(_numbers)} {chain}"
            try:
                made = self._proxy.prepare(self._key, self._wanted.parent, self._wanted.labels, self._patience)
            except AlreadyExists:
                if self._proxy.has(chain, self._patience):
                    self._key = ""
                    raise Taken(chain) from None
                self.abandon()
            else:
                self._place = mounts.place(made, self._proxy.name)
                return
        raise NotFound(f"{self._proxy}: says that layer {chain} exists and does not have it")

    def unpack(self, name: str, stream: int, limits: Limits, algorithm: str = "sha256") -> Unpacked:
        """Unpack the layer, as UnpackClient.unpack does; the name is not used."""
        if self._place is None:
            self.abandon()
            self.begin()
        assert self._place is not None
        place, self._place = self._place, None
        return self._client.apply(self._proxy.name, place.upper, place.lowers, stream, limits, algorithm)

    def commit(self) -> None:
        """Let the layer count."""
        self._proxy.commit(self._wanted.layer.chain_id, self._key, self._wanted.labels, self._patience)
        self._key = ""

    def abandon(self) -> None:
        """Remove what is not going to be committed."""
        key, self._key = self._key, ""
        if not key:
            return
        try:
            self._proxy.remove(key)
        except BulkheadError as error:
            logger.info("snapshot %s is left to the next start: %s", key, error)

    def remove(self, name: str) -> None:
        """Do as `abandon` does."""
        self.abandon()

    def ping(self, *, timeout: float = 5.0) -> None:
        """Return if the unpack helper is there."""
        self._client.ping(timeout=timeout)
