"""OCI layouts as directories: read into a tar, written from one."""

import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bulkhead.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PIECE = 1 << 20
_BLOB = re.compile(r"blobs/[a-z0-9]{1,16}/[0-9a-f]{32,128}")
_DOCUMENTS = ("oci-layout", "index.json", "manifest.json")


def tar(directory: Path) -> tuple[Iterator[bytes], int]:
    """Return a layout as a tar, and about how many bytes that has; InvalidArgument for another directory."""
    if not (directory / "index.json").is_file():
        raise InvalidArgument(f"{directory} is not an OCI layout: it has no index.json")
    files = [directory / name for name in _DOCUMENTS if (directory / name).is_file()]
    files += sorted(path for path in directory.glob("blobs/*/*") if _BLOB.fullmatch(str(path.relative_to(directory))))
    return _tar(directory, files), sum(path.stat().st_size for path in files)


def _tar(directory: Path, files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        # A blob that is a link is what a user may do in a layout of theirs: it is the bytes that count.
        with path.open("rb") as file:
            info = tarfile.TarInfo(str(path.relative_to(directory)))
            left = info.size = os.fstat(file.fileno()).st_size
            yield info.tobuf(tarfile.GNU_FORMAT)
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise DataLoss(f"{path} became shorter while it was read")
                left -= len(piece)
                yield piece
            yield bytes(-info.size % 512)
    yield bytes(1024)


class Pieces(io.RawIOBase):
    """A stream of pieces as a file, for whoever reads one."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a part of the buffer; 0 at the end."""
        target = memoryview(buffer).cast("B")
        while not self._rest:
            following = next(self._pieces, None)
            if following is None:
                return 0
            self._rest = memoryview(following)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def unpack(pieces: Iterator[bytes], directory: Path) -> None:
    """Write a layout from its tar into a new or empty directory; only what belongs in a layout is written.

    One that does not come to its end leaves the directory empty.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise AlreadyExists(f"{directory} is not empty")
    try:
        with tarfile.open(fileobj=io.BufferedReader(Pieces(pieces), PIECE), mode="r|") as archive:
            for member in archive:
                if not member.isdir():
                    _write(archive, member, directory)
    except BaseException as error:
        for child in directory.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        if isinstance(error, tarfile.TarError):
            raise DataLoss(f"image-svc sent a damaged archive: {error}") from error
        raise


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    if not member.isreg() or not (_BLOB.fullmatch(member.name) or member.name in _DOCUMENTS):
        raise FailedPrecondition(f"image-svc sent {member.name!r}, which is no part of an OCI layout")
    target = directory / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None
    with target.open("xb") as file:
        while piece := source.read(PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
