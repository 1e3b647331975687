"""One blob's upload to one host, in one request or several, taken up where it broke (OCI distribution-spec, Push)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from bulkhead.errors import DataLoss, FailedPrecondition
from image_svc.patience import Patience
from image_svc.registry.endpoint import Call, Endpoint
from image_svc.registry.failures import HostFailure
from image_svc.registry.repository import Descriptor

#: Below a repository: where uploads begin.
UPLOADS = "blobs/uploads/"
#: Blobs of at most so many bytes go out in one request and are begun anew when it fails.
SINGLE = 1 << 20
#: Bytes read from disk at once.
_BLOCK = 1 << 18
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")

#: Told how many bytes of a blob the registry has, or has been sent.
Progress = Callable[[int], None]


@dataclass
class Session:
    """An upload that the registry keeps for us: where it goes on, and how many bytes are there."""

    location: str
    offset: int = 0


class Upload:
    """One blob's upload, taken up where it broke."""

    def __init__(
        self,
        endpoint: Endpoint,
        wanted: Descriptor,
        path: Path,
        what: str,
        patience: Patience,
        progress: Progress,
        chunk: int,
        *,
        session: Session | None,
        arrived: Callable[[], bool],
    ) -> None:
        self._endpoint, self._wanted, self._path = endpoint, wanted, path
        self._what, self._patience, self._progress, self._chunk = what, patience, progress, chunk
        self._session = session
        self._arrived = arrived
        #: Whether the end of the upload was asked for, and the answer never came.
        self._unsure = False
        #: Bytes that the registry confirmed at the most.
        self.best = 0

    def run(self) -> None:
        """Send what is missing; after a failure a further call goes on from what the registry has."""
        if self._unsure and self._arrived():
            self._progress(self._wanted.size)
            return
        session = self._session or self._begin()
        if self._session is not None and self.best:
            session = self._ask(session)
        self._session = session
        whole = self._wanted.size <= SINGLE and not session.offset and not self._chunk
        while not whole and session.offset < self._wanted.size:
            self._patch(session)
        self._finish(session)

    def _begin(self) -> Session:
        call = Call("POST", UPLOADS, {"content-length": "0"})
        with self._endpoint.call(call, self._what, self._patience) as response:
            made = session_of(response)
        if made is None:
            text = f"{self._what}: {self._endpoint.origin} began an upload without saying where it goes on"
            raise HostFailure(FailedPrecondition(text))
        return made

    def _ask(self, session: Session) -> Session:
        """Find out how much arrived and return the upload; one that the registry forgot is begun anew."""
        call = Call("GET", UPLOADS, location=session.location)
        try:
            with self._endpoint.call(call, self._what, self._patience) as response:
                self._confirm(session, response, 0)
        except HostFailure as failure:
            if failure.retry:
                raise
            session = self._begin()
        else:
            session = session if session.offset else self._begin()
        self._progress(session.offset)
        return session

    def _patch(self, session: Session) -> None:
        begin = session.offset
        count = min(self._chunk or self._wanted.size, self._wanted.size - begin)
        # From here on the registry may have more than we know of.
        self.best = max(self.best, 1)
        headers = {**self._headers(count), "content-range": f"{begin}-{begin + count - 1}"}
        call = Call("PATCH", UPLOADS, headers, session.location, body=lambda: self._bytes(begin, count))
        with self._endpoint.call(call, self._what, self._patience) as response:
            self._confirm(session, response, begin + count)
        if session.offset <= begin:
            text = f"{self._what}: {self._endpoint.origin} took {count} bytes and kept none"
            raise HostFailure(FailedPrecondition(text), retry=True)

    def _confirm(self, session: Session, response: httpx.Response, sent: int) -> None:
        """Note what the registry says it has: `sent` bytes where it says nothing."""
        found = _RANGE.fullmatch(response.headers.get("range", ""))
        end = int(found[1]) if found else -1
        # "0-0" stands for one byte, and with Debian's registry for none.
        session.offset = min(end + 1, self._wanted.size) if end > 0 else min(sent, 1) if end == 0 else sent
        session.location = response.headers.get("location") or session.location
        self.best = max(self.best, session.offset)
        self._progress(session.offset)

    def _finish(self, session: Session) -> None:
        """Send what is left, if anything, and have the registry check the digest."""
        begin, count = session.offset, self._wanted.size - session.offset
        body = (lambda: self._bytes(begin, count)) if count else None
        query = {"digest": self._wanted.digest}
        call = Call("PUT", UPLOADS, self._headers(count), session.location, query, body)
        # Once it was asked for nobody knows, without an answer, whether the upload is still there.
        self._session, self._unsure = None, True
        with self._endpoint.call(call, self._what, self._patience) as response:
            expect(response, self._wanted.digest, self._what, self._endpoint.origin)
        self._progress(self._wanted.size)

    def _headers(self, count: int) -> dict[str, str]:
        return {"content-type": "application/octet-stream", "content-length": str(count)}

    def _bytes(self, begin: int, count: int) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(begin)
            while count:
                self._patience.check()
                block = file.read(min(_BLOCK, count))
                if not block:
                    raise DataLoss(f"{self._what}: {self._path} was cut short")
                count -= len(block)
                yield block
                self._progress(file.tell())


def session_of(response: httpx.Response) -> Session | None:
    """Return the upload that an answer opened, if it did."""
    location = response.headers.get("location", "")
    return Session(location) if location and response.status_code in (200, 202, 204) else None


def expect(response: httpx.Response, digest: str, what: str, origin: str) -> None:
    """Check a confirmation: created, and under the digest that was sent."""
    found = response.headers.get("docker-content-digest", digest)
    if response.status_code not in (200, 201, 202, 204):
        raise HostFailure(FailedPrecondition(f"{what}: {origin} answered {response.status_code}, expected 201"))
    if found != digest:
        raise HostFailure(DataLoss(f"{what}: {origin} says that what was sent is {found[:100]!r}"))
