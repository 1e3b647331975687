"""Unpacks one layer into the directory that is this process's root: runs in the confined worker.

Files get all their metadata as they are written; directories at the end, since writing into one changes its times and
a default ACL must not reach the files of its own layer. When a path occurs twice the last entry wins, except that two
directories are one. Whiteouts become overlayfs's: a 0:0 character device. Hiding a name and making a directory of it
in the same layer, in whatever order, makes that directory opaque. Opaque directories are only listed here, since the
attribute for them takes a privilege that this process must not have.
"""

import os
import stat
from typing import Any

from bulkhead.errors import BulkheadError, InvalidArgument, ResourceExhausted
from image_svc.unpack import attributes, tar
from image_svc.unpack.disk import Disk, explain
from image_svc.unpack.protocol import Limits
from image_svc.unpack.ring import Ring
from image_svc.unpack.sparse import Sparse
from image_svc.unpack.stream import Stream
from image_svc.unpack.tar import Entry, shown
from image_svc.unpack.tree import Directory, components

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_DEVICES = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}


class Layer:
    """One layer on its way to disk."""

    def __init__(self, limits: Limits) -> None:
        """Start with the process's root directory, which is empty."""
        self._limits = limits
        self._disk = Disk(limits)
        self._ignored_xattrs = 0
        self._xattr_bytes = 0

    def read(self, stream: Stream) -> None:
        """Unpack every entry of the stream; an error names the entry."""
        for entry in tar.entries(stream):
            try:
                if not self._add(entry, stream):
                    stream.skip(entry.size)
            except OSError as error:
                raise explain(error, entry.name) from error
            except BulkheadError as error:
                raise type(error)(f"entry {shown(entry.name)}: {error}") from error

    def finish(self, implicit: int, opaque: int) -> dict[str, int]:
        """Give the directories their metadata, write the two lists to their descriptors, and return the counts."""
        disk = self._disk
        disk.close()
        finisher = attributes.Finisher(implicit, opaque)
        finisher.run(disk.tree.root, disk.root)
        return {
            "entries": disk.entries,
            "bytes": disk.bytes,
            "inodes": disk.inodes,
            "whiteouts": disk.whiteouts,
            "opaque": finisher.opaque.count,
            "implicit": finisher.implicit.count,
            "ignored_xattrs": self._ignored_xattrs + finisher.ignored_xattrs,
        }

    def _add(self, entry: Entry, stream: Stream) -> bool:
        """Add one entry and return whether its data was consumed."""
        self._check(entry)
        above, _, base = entry.name.rpartition(b"/")
        if base in (b"", b".", b".."):
            parts = components(entry.name)
            above, base = b"/".join(parts[:-1]), parts[-1] if parts else b""
        if base.startswith(_WHITEOUT) or _AUFS in above:
            self._white_out(above, base)
            return False
        if not base:
            self._describe_root(entry)
            return False
        parent = self._disk.tree.directory(above)
        if entry.kind == tar.REGULAR:
            self._write_file(parent, base, entry, stream)
            return True
        self._make_special(parent, base, entry)
        return False

    def _check(self, entry: Entry) -> None:
        longest = self._limits.path_length
        if len(entry.name) > longest:
            raise ResourceExhausted(f"path is {len(entry.name)} bytes long, at most {longest} are allowed")
        if entry.xattrs:
            self._count_xattrs(entry.xattrs)
        if entry.size < 0:
            raise InvalidArgument(f"size is {entry.size}")
        if not (0 <= entry.uid < 0xFFFFFFFF and 0 <= entry.gid < 0xFFFFFFFF):  # -1 means "no change" to chown(2)
            raise InvalidArgument(f"owner {entry.uid}:{entry.gid} is not from 0 to 4294967294")

    def _count_xattrs(self, xattrs: dict[bytes, bytes]) -> None:
        self._xattr_bytes += sum(len(name) + len(value) for name, value in xattrs.items())
        limits = self._limits
        if len(xattrs) > limits.xattrs:
            raise ResourceExhausted(f"{len(xattrs)} extended attributes, at most {limits.xattrs} are allowed")
        if self._xattr_bytes > limits.xattr_bytes:
            raise ResourceExhausted(f"layer has more than {limits.xattr_bytes} bytes of extended attributes")

    def _make_special(self, parent: Directory, base: bytes, entry: Entry) -> None:
        kind = entry.kind
        if kind == tar.DIRECTORY:
            self._make_directory(parent, base, entry)
        elif kind == tar.LINK:
            self._make_link(parent, base, entry)
        elif kind == tar.SYMLINK:
            self._make_symlink(parent, base, entry)
        elif kind in _DEVICES:
            self._make_device(parent, base, entry)
        else:
            raise InvalidArgument(f"entries of type {shown(kind)} are not supported")

    def _write_file(self, parent: Directory, base: bytes, entry: Entry, stream: Stream) -> None:
        mode = entry.mode & 0o777
        fd = self._disk.place(parent, base, lambda where: os.open(base, _CREATE, mode, dir_fd=where))
        try:
            if entry.sparse is not None:
                _write_pieces(fd, entry.sparse, stream)
            elif entry.size:
                stream.copy(entry.size, fd)
            if entry.uid or entry.gid:
                os.fchown(fd, entry.uid, entry.gid)
            if mode != entry.mode:  # after chown(2), which takes set-id bits away
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._ignored_xattrs += attributes.set_xattrs(fd, entry.xattrs)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)
        self._disk.grow(entry.size)

    def _make_directory(self, parent: Directory, base: bytes, entry: Entry) -> None:
        child = parent.children.get(base)
        if not isinstance(child, Directory):
            child = self._disk.make_directory(parent, base)
        child.metadata = (entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs)

    def _describe_root(self, entry: Entry) -> None:
        if entry.kind != tar.DIRECTORY:
            raise InvalidArgument("the root of the layer is not a directory")
        self._disk.tree.root.metadata = (entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs)

    def _make_symlink(self, parent: Directory, base: bytes, entry: Entry) -> None:
        if not entry.link:
            raise InvalidArgument("symbolic link to nothing")
        self._disk.place(parent, base, lambda where: os.symlink(entry.link, base, dir_fd=where))
        parent.children[base] = entry.link
        self._give(parent, base, entry)

    def _make_device(self, parent: Directory, base: bytes, entry: Entry) -> None:
        major, minor = entry.device
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):  # the kernel's dev_t
            raise InvalidArgument(f"device number {major}:{minor} is not possible")
        mode, device = _DEVICES[entry.kind] | entry.mode, os.makedev(major, minor)
        self._disk.place(parent, base, lambda where: os.mknod(base, mode, device, dir_fd=where))
        self._give(parent, base, entry)
        if entry.mode & 0o7000:
            os.chmod(base, entry.mode, dir_fd=self._disk.handle(parent))

    def _give(self, parent: Directory, base: bytes, entry: Entry) -> None:
        """Set owner and times of what cannot be opened; attributes, which Linux has for files only, are left out."""
        where = self._disk.handle(parent)
        if entry.uid or entry.gid:
            os.chown(base, entry.uid, entry.gid, dir_fd=where, follow_symlinks=False)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=where, follow_symlinks=False)
        self._ignored_xattrs += len(entry.xattrs)

    def _make_link(self, parent: Directory, base: bytes, entry: Entry) -> None:
        """Make a hard link; its metadata is that of the entry it points to, as with GNU tar."""
        steps = components(entry.link)
        source = self._disk.tree.find(b"/".join(steps[:-1]))
        if not steps or source is None:
            raise InvalidArgument(f"hard link to {shown(entry.link)}, which is not in this layer")
        name = steps[-1]
        if source is parent and name == base:
            return

        def link(where: int) -> None:
            if not source.live:  # it lay in the directory that this name replaces
                raise FileNotFoundError
            from_fd = self._disk.handle(source)
            os.link(name, base, src_dir_fd=from_fd, dst_dir_fd=where, follow_symlinks=False)

        self._disk.reserve(2)
        try:
            self._disk.place(parent, base, link)
        except FileNotFoundError:
            raise InvalidArgument(f"hard link to {shown(entry.link)}, which is not in this layer") from None
        self._disk.inodes -= 1
        target = source.children.get(name)
        if isinstance(target, bytes):  # a second name of a symbolic link is one, too
            parent.children[base] = target

    def _white_out(self, above: bytes, base: bytes) -> None:
        """Hide a name, or everything in a directory, of the layers below; aufs's own files are passed over."""
        if base == _OPAQUE:
            self._disk.tree.directory(above).opaque = True
            return
        if base.startswith(_AUFS) or _AUFS in above:
            return
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise InvalidArgument("the whiteout names no file")
        parent = self._disk.tree.directory(above)
        child = parent.children.get(hidden)
        if isinstance(child, Directory):
            child.opaque = True
        elif child is None:
            self._disk.white_out(parent, hidden)


def _write_pieces(fd: int, sparse: Sparse, stream: Stream) -> None:
    """Write what the archive holds of a file; the rest stays a hole."""
    os.ftruncate(fd, sparse.size)
    for offset, length in sparse.pieces:
        os.lseek(fd, offset, os.SEEK_SET)
        stream.pour(length, fd)
    stream.skip_padding(sparse.stored)


def unpack(ring: Ring, *, implicit: int, opaque: int, limits: Limits, algorithm: str) -> dict[str, Any]:
    """Unpack the tar stream that comes through a ring into the root directory and return what Unpacked holds."""
    stream = Stream(ring.take, limits.bytes, algorithm)
    layer = Layer(limits)
    layer.read(stream)
    return {**layer.finish(implicit, opaque), "stream_bytes": stream.total, "diff_id": stream.digest}
