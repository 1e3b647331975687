"""Blobs and manifests on their way to a registry (OCI distribution-spec, "Push")."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TypeVar

from bulkhead.config.model import Registry
from bulkhead.errors import DataLoss, FailedPrecondition, NotFound
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.credentials import Providers
from image_svc.oci import digests
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.registry import credentials, hosts, scopes, tls
from image_svc.registry.endpoint import Call, Endpoint
from image_svc.registry.failures import HostFailure
from image_svc.registry.repository import Descriptor, Retry
from image_svc.registry.upload import UPLOADS, Progress, Session, Upload, expect, session_of

logger = logging.getLogger(__name__)

#: Seconds without a byte of an answer: a registry may hash and copy gigabytes before it confirms them.
ANSWER_TIMEOUT = 300.0

_T = TypeVar("_T")


class Outcome(Enum):
    """How a blob came to be in the repository."""

    PRESENT = "present"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


class Pusher:
    """Pushes to one repository at one host, the first that hosts.toml lets be pushed to; safe to share between threads.

    There is no going on at another host: what is pushed must all be in one place.
    """

    def __init__(
        self,
        reference: Reference,
        registry: Registry,
        auth: AuthConfig | None = None,
        *,
        providers: Providers | None = None,
        retry: Retry | None = None,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self.reference = reference
        self._retry = retry or Retry()
        able = [host for host in hosts.lookup(reference.domain, registry) if "push" in host.capabilities]
        if not able:
            raise FailedPrecondition(f"{reference}: hosts.toml names no host with the capability 'push'")
        tls.check_files(able[0])
        image = able[0].image(reference.domain, reference.path)
        self._endpoint = Endpoint(
            able[0],
            reference.domain,
            reference.path,
            credentials.for_host(able[0], auth, registry, providers, image),
            actions=("pull", "push"),
            read_timeout=answer_timeout,
        )

    @property
    def origin(self) -> str:
        """Scheme and host that is pushed to."""
        return self._endpoint.origin

    @contextmanager
    def held(self) -> Iterator["Pusher"]:
        """Close the connections at the end of the block."""
        try:
            yield self
        finally:
            self._endpoint.close()

    def blob(
        self,
        wanted: Descriptor,
        path: Path,
        patience: Patience,
        *,
        mount_from: Sequence[str] = (),
        progress: Progress = lambda done: None,
        chunk: int = 0,
    ) -> Outcome:
        """See to it that the repository has a blob, whose bytes are the file at `path`.

        `mount_from` are repositories of the same registry (paths without its name) that may have it. `chunk` is how
        many bytes to send in one request, for proxies that limit them; 0 sends all.
        """
        what = f"{self.reference.name}@{wanted.digest}: push"
        if self._has(f"blobs/{wanted.digest}", wanted.digest, what, patience):
            progress(wanted.size)
            return Outcome.PRESENT
        if (found := path.stat().st_size) != wanted.size:
            raise DataLoss(f"{what}: {path} has {found} bytes, the manifest says {wanted.size}")
        session = None
        for other in mount_from:
            if other != self.reference.path:
                mounted, session = self._mount(wanted.digest, other, what, patience)
                if mounted:
                    progress(wanted.size)
                    return Outcome.MOUNTED
        upload = Upload(
            self._endpoint,
            wanted,
            path,
            what,
            patience,
            progress,
            chunk,
            session=session,
            arrived=lambda: self._has(f"blobs/{wanted.digest}", wanted.digest, what, patience),
        )
        self._patiently(upload.run, patience, lambda: upload.best)
        return Outcome.UPLOADED

    def manifest(self, data: bytes, media_type: str, patience: Patience, *, tag: str = "") -> str:
        """Put a manifest or index under its digest, or under a tag as well, and return its digest."""
        digest = digests.of(data)
        what = f"{self.reference.name}:{tag}: push" if tag else f"{self.reference.name}@{digest}: push"
        headers = {"content-type": media_type, "content-length": str(len(data))}

        def put() -> None:
            call = Call("PUT", f"manifests/{tag or digest}", headers, body=lambda: [data])
            with self._endpoint.call(call, what, patience) as response:
                expect(response, digest, what, self.origin)

        self._patiently(put, patience)
        return digest

    def has_manifest(self, wanted: Descriptor, patience: Patience) -> bool:
        """Whether the repository has a manifest or index already."""
        what = f"{self.reference.name}@{wanted.digest}: push"
        return self._has(f"manifests/{wanted.digest}", wanted.digest, what, patience, accept=wanted.media_type)

    def _has(self, path: str, digest: str, what: str, patience: Patience, accept: str = "") -> bool:
        def head() -> bool:
            call = Call("HEAD", path, {"accept": f"{accept}, */*"} if accept else {})
            try:
                with self._endpoint.call(call, what, patience) as response:
                    return str(response.headers.get("docker-content-digest", digest)) == digest
            except HostFailure as failure:
                if isinstance(failure.error, NotFound):
                    return False
                raise

        return self._patiently(head, patience)

    def _mount(self, digest: str, other: str, what: str, patience: Patience) -> tuple[bool, Session | None]:
        """Try to take a blob over from another repository; else there may be an upload to go on with."""
        call = Call("POST", UPLOADS, {"content-length": "0"}, query={"mount": digest, "from": other})
        try:
            with (
                self._endpoint.authorizer.also(scopes.repository(other, "pull")),
                self._endpoint.call(call, what, patience) as response,
            ):
                return response.status_code == 201, session_of(response)
        except HostFailure as failure:
            patience.check()
            logger.debug("not mounted from %s: %s", other, failure)
            return False, None

    def _patiently(self, action: Callable[[], _T], patience: Patience, progress: Callable[[], int] = lambda: 0) -> _T:
        """Repeat what fails in a way that may pass, until rounds bring nothing new."""
        idle, before = 0, progress()
        while True:
            patience.check()
            try:
                return action()
            except HostFailure as failure:
                patience.check()
                idle, before = (0, now) if (now := progress()) > before else (idle + 1, before)
                wait = max(failure.after, self._retry.first_wait * 2 ** max(idle - 1, 0))
                if not failure.retry or idle >= self._retry.rounds or wait > self._retry.longest_wait:
                    raise failure.error from failure
                logger.info("%s, trying again in %.1f s", failure, wait)
            patience.sleep(wait)
