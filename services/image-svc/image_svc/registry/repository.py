"""One repository behind its hosts: resolve a name, fetch a manifest, stream a blob, with failover and retries."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from bulkhead.config.model import Registry
from bulkhead.errors import BulkheadError, DataLoss, FailedPrecondition, NotFound, PermissionDenied
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc import telemetry
from image_svc.credentials import Providers
from image_svc.oci import digests, media
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.registry import credentials, hosts, tls
from image_svc.registry.connections import READ_TIMEOUT
from image_svc.registry.endpoint import Endpoint
from image_svc.registry.failures import HostFailure
from image_svc.registry.stream import Rate, body

logger = logging.getLogger(__name__)

#: Bytes of a manifest or index (the OCI distribution spec lets registries refuse more).
MANIFEST_LIMIT = 4 << 20
#: Rounds over all hosts that bring nothing new before a request is given up.
ROUNDS = 4
#: Seconds before the second round, doubled for each further one, and the longest wait that Retry-After may ask for.
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0

_PULL = frozenset({"pull"})

_T = TypeVar("_T")


@dataclass(frozen=True)
class Descriptor:
    """What names some content: digest, size in bytes (-1: not known) and media type."""

    digest: str
    size: int
    media_type: str
    annotations: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Retry:
    """How often and how patiently a failed request is repeated, and what counts as a stalled download."""

    rounds: int = ROUNDS
    first_wait: float = FIRST_WAIT
    longest_wait: float = LONGEST_WAIT
    read_timeout: float = READ_TIMEOUT
    rate: Rate = field(default_factory=Rate)


class Repository:
    """The hosts of one image's repository, in order, for the time of one pull; safe to share between threads."""

    def __init__(
        self,
        reference: Reference,
        registry: Registry,
        auth: AuthConfig | None = None,
        *,
        providers: Providers | None = None,
        actions: Sequence[str] = ("pull",),
        retry: Retry | None = None,
    ) -> None:
        self.reference = reference
        self._retry = retry or Retry()
        self._lock = threading.Lock()
        self._holders = 0
        found = hosts.lookup(reference.domain, registry)
        for host in found:
            tls.check_files(host)
        self._endpoints = [
            Endpoint(
                host,
                reference.domain,
                reference.path,
                credentials.for_host(host, auth, registry, providers, host.image(reference.domain, reference.path)),
                actions=actions,
                read_timeout=self._retry.read_timeout,
            )
            for host in found
        ]

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """The hosts, first choice first, whatever they may be asked for."""
        return self._endpoints

    def probe(self, endpoint: Endpoint, patience: Patience) -> Descriptor:
        """Ask one host, once, what the reference stands for; HostFailure if it does not say."""
        return self._head(endpoint, patience)

    @contextmanager
    def held(self) -> Iterator["Repository"]:
        """Keep the connections open during the block; whoever leaves last closes them."""
        with self._lock:
            self._holders += 1
        try:
            yield self
        finally:
            with self._lock:
                self._holders -= 1
                last = not self._holders
            if last:
                for endpoint in self._endpoints:
                    endpoint.close()

    def resolve(self, patience: Patience) -> Descriptor:
        """Ask what the reference stands for now; also proves that the credentials may read it."""
        what = f"{self.reference}: resolve"
        return self._over_hosts(needed(self.reference), lambda endpoint: self._head(endpoint, patience), what, patience)

    def manifest(self, wanted: Descriptor, patience: Patience) -> tuple[bytes, str]:
        """Return the bytes of a manifest or index, checked against digest and size, and their media type."""
        what = f"{self.reference.name}@{wanted.digest}: manifest"

        def get(endpoint: Endpoint) -> tuple[bytes, str]:
            path = f"manifests/{wanted.digest}"
            with endpoint.request("GET", path, what, patience, {"accept": media.ACCEPT}) as response:
                data = _read_limited(response, MANIFEST_LIMIT, what, endpoint)
                _check(data, wanted, what, endpoint)
                return data, _media_type(response) or wanted.media_type

        return self._over_hosts(_PULL, get, what, patience)

    def small_blob(self, wanted: Descriptor, limit: int, patience: Patience) -> bytes:
        """Return a blob of at most `limit` bytes, such as an image's configuration, checked."""
        what = f"{self.reference.name}@{wanted.digest}: configuration"

        def get(endpoint: Endpoint) -> bytes:
            with endpoint.request("GET", f"blobs/{wanted.digest}", what, patience) as response:
                data = _read_limited(response, limit, what, endpoint)
                _check(data, wanted, what, endpoint)
                return data

        return self._over_hosts(_PULL, get, what, patience)

    def download(
        self,
        wanted: Descriptor,
        have: Callable[[], int],
        write: Callable[[memoryview], None],
        patience: Patience,
        avoid: Collection[str] = (),
    ) -> str:
        """Stream a blob, from the byte that `have()` says is next, into `write`; return the host that ended it.

        A broken connection is taken up where it broke, at the same host or the next. The digest is the caller's to
        check. `avoid` are origins not to be asked.
        """
        what = f"{self.reference.name}@{wanted.digest}: layer"

        def get(endpoint: Endpoint) -> str:
            offset = have()
            headers = {"range": f"bytes={offset}-"} if offset else {}
            with endpoint.request("GET", f"blobs/{wanted.digest}", what, patience, headers) as response:
                for part in body(response, offset, wanted.size, what, self._retry.rate, patience):
                    write(part)
            return endpoint.origin

        return self._over_hosts(_PULL, get, what, patience, progress=have, avoid=avoid)

    def _head(self, endpoint: Endpoint, patience: Patience) -> Descriptor:
        what = f"{self.reference}: resolve"
        path = f"manifests/{self.reference.identifier}"
        try:
            with endpoint.request("HEAD", path, what, patience, {"accept": media.ACCEPT}) as response:
                found = response.headers.get("docker-content-digest", "")
                kind = _media_type(response)
        except HostFailure as failure:
            if not isinstance(failure.error, PermissionDenied):
                raise
            # Only the answer to GET has a body that says why.
            return self._get(endpoint, patience)
        if not found and self.reference.digest:
            found = self.reference.digest
        if not found or not kind:
            return self._get(endpoint, patience)
        try:
            digests.check(found, f"{what}: {endpoint.origin}: Docker-Content-Digest")
        except BulkheadError as error:
            raise HostFailure(DataLoss(str(error))) from error
        if self.reference.digest and found != self.reference.digest:
            text = f"{what}: {endpoint.origin} answered with digest {found}"
            raise HostFailure(DataLoss(text))
        return Descriptor(found, -1, kind)

    def _get(self, endpoint: Endpoint, patience: Patience) -> Descriptor:
        """Resolve at a registry whose answer to HEAD says too little."""
        what = f"{self.reference}: resolve"
        path = f"manifests/{self.reference.identifier}"
        with endpoint.request("GET", path, what, patience, {"accept": media.ACCEPT}) as response:
            data = _read_limited(response, MANIFEST_LIMIT, what, endpoint)
            kind = _media_type(response)
        if self.reference.digest:
            _check(data, Descriptor(self.reference.digest, -1, kind), what, endpoint)
            return Descriptor(self.reference.digest, len(data), kind)
        return Descriptor(digests.of(data), len(data), kind)

    def _over_hosts(
        self,
        capabilities: Collection[str],
        action: Callable[[Endpoint], _T],
        what: str,
        patience: Patience,
        *,
        progress: Callable[[], int] = lambda: 0,
        avoid: Collection[str] = (),
    ) -> _T:
        """Try the hosts in order, then again those whose failure may pass, until the rounds bring nothing new."""
        able = [endpoint for endpoint in self._endpoints if endpoint.host.capabilities.issuperset(capabilities)]
        left = [endpoint for endpoint in able if endpoint.origin not in avoid]
        if not left:
            wanted = " and ".join(sorted(capabilities))
            raise FailedPrecondition(f"{what}: hosts.toml names no host with the capabilities {wanted}")
        failures: dict[str, BulkheadError] = {}
        idle, before = 0, progress()
        while True:
            wait = 0.0
            for endpoint in list(left):
                patience.check()
                try:
                    return action(endpoint)
                except HostFailure as failure:
                    patience.check()
                    failures[endpoint.origin] = failure.error
                    wait = max(wait, failure.after)
                    if not failure.retry:
                        left.remove(endpoint)
                    logger.info("%s, %s", failure, "may be tried again" if failure.retry else "giving up this host")
            idle, before = (0, now) if (now := progress()) > before else (idle + 1, before)
            wait = max(wait, self._retry.first_wait * 2 ** max(idle - 1, 0))
            if not left or idle >= self._retry.rounds or wait > self._retry.longest_wait:
                raise worst(failures)
            telemetry.RETRIES.labels("registry").inc()
            patience.sleep(wait)


def needed(reference: Reference) -> frozenset[str]:
    """Return the capabilities of the hosts that are asked what a reference stands for.

    A host that is trusted with a tag must have the content as well (containerd, Resolve).
    """
    return _PULL if reference.digest else _PULL | {"resolve"}


def worst(failures: dict[str, BulkheadError]) -> BulkheadError:
    """Return the failure that says most: the registry's own (the last), unless it merely has nothing."""
    errors = list(failures.values())
    telling = [error for error in errors if not isinstance(error, NotFound)]
    chosen = (telling or errors)[-1]
    others = [str(error) for error in errors if error is not chosen]
    return type(chosen)("; ".join([str(chosen), *others]))


def _media_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip()


def _read_limited(response: httpx.Response, limit: int, what: str, endpoint: Endpoint) -> bytes:
    data = bytearray()
    until = time.monotonic() + 120.0
    for part in response.iter_raw():
        data += part
        if len(data) > limit:
            text = f"{what}: {endpoint.origin} sends more than the {limit} bytes allowed"
            raise HostFailure(FailedPrecondition(text))
        if time.monotonic() > until:
            raise httpx.ReadTimeout("trickling")
    return bytes(data)


def _check(data: bytes, wanted: Descriptor, what: str, endpoint: Endpoint) -> None:
    try:
        if wanted.size >= 0 and len(data) != wanted.size:
            raise DataLoss(f"{what}: {endpoint.origin} sent {len(data)} bytes, {wanted.size} were promised")
        digests.verify(data, wanted.digest, f"{what}: {endpoint.origin}")
    except DataLoss as error:
        raise HostFailure(error) from error
