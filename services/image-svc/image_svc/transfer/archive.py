"""An image archive as it was read: its blobs in the content store, its small documents and links in memory."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bulkhead.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted
from image_svc.ingest import Content
from image_svc.oci import digests
from image_svc.oci.manifest import CONFIG_LIMIT
from image_svc.patience import Patience
from image_svc.transfer.compression import archive_stream
from image_svc.transfer.staging import Staged, Staging
from image_svc.transfer.tar import Entry, Kind, Reader, entries

#: Entries of one archive; a thousand images of a hundred layers, with the three files that docker save made of each.
ENTRY_LIMIT = 300_000
#: Bytes of all documents, and characters of all names and links, in memory.
DOCUMENTS_LIMIT = 64 << 20
#: Links followed from one name.
LINK_LIMIT = 8

_BLOB = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)")
_DOCUMENT = re.compile(r"oci-layout|repositories|[^/]+\.json")


@dataclass
class Archive:
    """What an archive held, by canonical names."""

    content: Content
    documents: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, Staged] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def staged(self, name: str) -> Staged | None:
        """Return the blob that a name stands for, links followed; None if there is none."""
        return self.blobs.get(self._resolved(name))

    def read(self, name: str) -> bytes | None:
        """Return a small file's bytes, links followed; None if there is none."""
        target = self._resolved(name)
        if target in self.documents:
            return self.documents[target]
        found = self.blobs.get(target)
        if found is None:
            return None
        if found.size > CONFIG_LIMIT:
            raise FailedPrecondition(f"archive: {name!r} has {found.size} bytes, at most {CONFIG_LIMIT} are allowed")
        return self.content.read(found.digest)

    def holds(self, digest: str) -> Staged | None:
        """Return the blob of a digest as an OCI layout names it."""
        return self.staged(f"blobs/{digest.replace(':', '/')}")

    def _resolved(self, name: str) -> str:
        name = posixpath.normpath(name)
        for _ in range(LINK_LIMIT):
            following = self.links.get(name)
            if following is None:
                return name
            name = following
        raise InvalidArgument(f"archive: {name[:200]!r} is a link in a circle or through too many others")


def read(blocks: Iterable[bytes], staging: Staging, content: Content, patience: Patience, limit: int) -> Archive:
    """Read an archive, compressed or not, to its end; every file under `blobs/` must be what its name promises.

    ResourceExhausted for one whose tar has more than `limit` bytes.
    """
    archive = Archive(content)
    reader = Reader(_bounded(archive_stream(_wanted(blocks, patience)), patience, limit))
    total = 0
    for number, entry in enumerate(entries(reader)):
        total += len(entry.name) + len(entry.link)
        if number >= ENTRY_LIMIT or total > DOCUMENTS_LIMIT:
            raise ResourceExhausted(f"archive has more than {ENTRY_LIMIT} entries, or {DOCUMENTS_LIMIT} bytes of names")
        if entry.kind in (Kind.SYMLINK, Kind.LINK):
            archive.links[entry.name] = entry.link
        elif entry.kind is Kind.FILE:
            archive.links.pop(entry.name, None)
            if _DOCUMENT.fullmatch(entry.name) and entry.size <= CONFIG_LIMIT:
                total += entry.size
                if total > DOCUMENTS_LIMIT:
                    raise ResourceExhausted(f"archive has more than {DOCUMENTS_LIMIT} bytes of documents")
                archive.documents[entry.name] = b"".join(reader.data(entry.size))
            else:
                archive.blobs[entry.name] = _stage(entry, reader, staging)
    return archive


def _stage(entry: Entry, reader: Reader, staging: Staging) -> Staged:
    match = _BLOB.fullmatch(entry.name)
    expected = ""
    if match and len(match[2]) == digests.LENGTHS.get(match[1]):
        expected = f"{match[1]}:{match[2]}"
    return staging.take(entry.name, entry.size, reader.data(entry.size), expected)


def _bounded(blocks: Iterable[bytes], patience: Patience, limit: int) -> Iterator[bytes]:
    """Pass blocks on as long as anybody waits, and up to a limit: a compressed megabyte may hold days of padding."""
    total = 0
    for block in blocks:
        patience.check()
        total += len(block)
        if total > limit:
            raise ResourceExhausted(f"archive holds more than {limit} bytes, uncompressed (bulkhead.import_max_bytes)")
        yield block


def _wanted(blocks: Iterable[bytes], patience: Patience) -> Iterator[bytes]:
    """Pass blocks on as long as anybody waits, whatever they hold: some need be nothing but ends of empty streams."""
    empty = True
    for block in blocks:
        patience.check()
        empty = empty and not block
        yield block
    if empty:
        raise DataLoss("archive is empty")
