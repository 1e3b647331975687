"""What a container has changed in its rootfs: its writable overlay directory as a tar in the format of image layers.

Everything in the directory is the container's own making, so no symlink is followed and every file is opened by its
directory's descriptor. Sources: overlayfs.rst of the kernel (whiteouts and opaque directories) and the OCI image-spec's
layer.md (their form in a layer).
"""

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from bulkhead.errors import FailedPrecondition
from sandbox_svc.netns import IdMapping

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
#: Extended attributes of overlayfs that say that what is here is not all there is to it.
_ELSEWHERE = (".overlay.redirect", ".overlay.metacopy")
#: Each level costs a descriptor while it is walked.
MAX_DEPTH = 256
#: Pieces of a file, of 16 KiB as tarfile copies them, from one look at the time to the next.
_READS = 64


class RootfsDiff:
    """Writes one directory; `deleted` names afterwards what the container has removed, relative to its root."""

    def __init__(
        self,
        upper: Path,
        *,
        uids: Iterable[IdMapping] = (),
        gids: Iterable[IdMapping] = (),
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        """Take the mappings of a pod with a user namespace, and what to call after each file or MiB (it may raise)."""
        self._upper, self._uids, self._gids, self._tick = upper, tuple(uids), tuple(gids), tick
        self._links: dict[tuple[int, int], str] = {}
        self.deleted: list[str] = []

    def write(self, target: BinaryIO) -> None:
        """Write the tar; FailedPrecondition where overlayfs keeps part of a directory elsewhere."""
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for place, directories, files, fd in os.fwalk(self._upper, follow_symlinks=False):
                where = os.path.relpath(place, self._upper)
                prefix = "" if where == "." else f"{where}/"
                if prefix.count("/") > MAX_DEPTH:
                    raise FailedPrecondition(f"the rootfs has more than {MAX_DEPTH} levels of directories")
                self._attributes(fd, prefix or "/")
                if prefix and _opaque(fd):
                    archive.addfile(tarfile.TarInfo(prefix + _OPAQUE))
                directories.sort()
                for name in sorted((*directories, *files)):
                    self._tick()
                    self._add(archive, fd, prefix, name)

    def _add(self, archive: tarfile.TarFile, directory: int, prefix: str, name: str) -> None:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISSOCK(status.st_mode):
            return  # nothing without its process, and tar has no word for it
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            self.deleted.append(prefix + name)
            archive.addfile(tarfile.TarInfo(f"{prefix}{_WHITEOUT}{name}"))
            return
        entry = self._entry(prefix + name, status)
        if stat.S_ISLNK(status.st_mode):
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=directory)
        elif entry.type == tarfile.REGTYPE:
            first = self._links.setdefault((status.st_dev, status.st_ino), entry.name)
            if status.st_nlink > 1 and first != entry.name:
                entry.type, entry.linkname = tarfile.LNKTYPE, first
            else:
                self._add_file(archive, directory, name, entry)
                return
        elif entry.type == tarfile.DIRTYPE:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                entry.pax_headers = _kept_attributes(fd)
            finally:
                os.close(fd)
        archive.addfile(entry)

    def _add_file(self, archive: tarfile.TarFile, directory: int, name: str, entry: tarfile.TarInfo) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, dir_fd=directory), "rb") as file:
            self._attributes(file.fileno(), entry.name)
            entry.size = os.fstat(file.fileno()).st_size
            entry.pax_headers = _kept_attributes(file.fileno())
            archive.addfile(entry, _Ticking(file, self._tick))

    def _entry(self, name: str, status: os.stat_result) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(name)
        entry.mode, entry.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
        entry.uid, entry.gid = _inside(status.st_uid, self._uids), _inside(status.st_gid, self._gids)
        kinds = {
            stat.S_IFDIR: tarfile.DIRTYPE,
            stat.S_IFIFO: tarfile.FIFOTYPE,
            stat.S_IFCHR: tarfile.CHRTYPE,
            stat.S_IFBLK: tarfile.BLKTYPE,
        }
        entry.type = kinds.get(stat.S_IFMT(status.st_mode), tarfile.REGTYPE)
        if entry.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        return entry

    def _attributes(self, fd: int, name: str) -> None:
        for attribute in os.listxattr(fd):
            if attribute.endswith(_ELSEWHERE):
                raise FailedPrecondition(f"{name} in the rootfs is only partly there ({attribute})")


class _Ticking(io.RawIOBase):
    """A file that calls back while it is read: one may take as long as all others."""

    def __init__(self, file: BinaryIO, tick: Callable[[], object]) -> None:
        self._file, self._tick, self._reads = file, tick, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next piece."""
        self._reads += 1
        if self._reads % _READS == 0:
            self._tick()
        return self._file.read(size)


def _opaque(fd: int) -> bool:
    attributes = set(os.listxattr(fd))
    return any(
        os.getxattr(fd, name) == b"y"
        for name in ("trusted.overlay.opaque", "user.overlay.opaque")
        if name in attributes
    )


def _kept_attributes(fd: int) -> dict[str, str]:
    """Return extended attributes as PAX records (SCHILY.xattr, as in image layers): capabilities, ACLs, users' own."""
    return {
        f"SCHILY.xattr.{name}": os.getxattr(fd, name).decode("utf-8", "surrogateescape")
        for name in os.listxattr(fd)
        if name.startswith(("security.capability", "system.posix_acl_", "user.")) and ".overlay." not in name
    }


def _inside(owner: int, mappings: tuple[IdMapping, ...]) -> int:
    """Return the id that the container knows for one of the node; one that it has no word for stays."""
    for one in mappings:
        if one.host_id <= owner < one.host_id + one.length:
            return owner - one.host_id + one.container_id
    return owner
