"""Unpacks one layer into the directory that is this process's root: runs in the confined worker.

Files get all their metadata as they are written; directories at the end, since writing into one changes its times and
a default ACL must not reach the files of its own layer. When a path occurs twice the last entry wins, except that two
directories are one. Whiteouts become overlayfs's: a 0:0 character device. Hiding a name and making a directory of it
in the same layer, in whatever order, makes that directory opaque; the same with a file needs no whiteout. Opaque
directories are only listed, since the attribute for them takes a privilege that this process must not have.
"""

import errno
import os
import stat
from typing import Any

from bulkhead.errors import BulkheadError, Internal, InvalidArgument, ResourceExhausted
from image_svc.unpack import attributes, linux, removal, tar
from image_svc.unpack.protocol import Limits
from image_svc.unpack.stream import Stream
from image_svc.unpack.tar import Entry, shown
from image_svc.unpack.tree import Directory, Tree, components

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE = 4096
#: Directories kept open: below RLIMIT_NOFILE with room for the walks.
_HANDLES = 400
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."


class Layer:
    """One layer on its way to disk."""

    def __init__(self, limits: Limits) -> None:
        """Start with the process's root directory, which is empty."""
        self._limits = limits
        self._root = os.open("/", _OPEN_DIRECTORY)
        self._tree = Tree(self._imply, limits.path_depth)
        self._tree.root.handle = self._root
        self._handles: list[Directory] = []
        self.entries = 0
        self.bytes = _PAGE
        self.inodes = 1
        self.whiteouts = 0
        self.ignored_xattrs = 0

    def read(self, stream: Stream) -> None:
        """Unpack every entry of the stream; an error names the entry."""
        for entry in tar.entries(stream):
            try:
                if not self._add(entry, stream):
                    stream.skip(entry.size)
            except OSError as error:
                raise _explain(error, entry.name) from error
            except BulkheadError as error:
                raise type(error)(f"entry {shown(entry.name)}: {error}") from error

    def _add(self, entry: Entry, stream: Stream) -> bool:
        """Add one entry and return whether its data was consumed."""
        name = entry.name
        if len(name) > self._limits.path_length:
            raise ResourceExhausted(f"path is {len(name)} bytes long, at most {self._limits.path_length} are allowed")
        if entry.size < 0:
            raise InvalidArgument(f"size is {entry.size}")
        if not (0 <= entry.uid < 0xFFFFFFFF and 0 <= entry.gid < 0xFFFFFFFF):
            raise InvalidArgument(f"owner {entry.uid}:{entry.gid} is not from 0 to 4294967294")
        above, _, base = name.rpartition(b"/")
        if base in (b"", b".", b".."):
            parts = components(name)
            above, base = b"/".join(parts[:-1]), parts[-1] if parts else b""
        if base.startswith(_WHITEOUT) or _AUFS in above:
            self._white_out(above, base)
            return False
        if not base:
            self._describe_root(entry)
            return False
        parent = self._tree.directory(above)
        if entry.kind == tar.REGULAR:
            self._write_file(parent, base, entry, stream)
            return True
        self._make_special(parent, base, entry)
        return False

    def _make_special(self, parent: Directory, base: bytes, entry: Entry) -> None:
        kind = entry.kind
        if kind == tar.DIRECTORY:
            self._make_directory(parent, base, entry)
        elif kind == tar.SYMLINK:
            self._make_symlink(parent, base, entry)
        elif kind == tar.LINK:
            self._make_link(parent, base, entry)
        elif kind in (tar.CHARACTER, tar.BLOCK_DEVICE, tar.FIFO):
            self._make_device(parent, base, entry)
        elif kind == b"S":
            raise InvalidArgument("sparse files are not supported")
        else:
            raise InvalidArgument(f"entries of type {shown(kind)} are not supported")

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._limits.entries:
            raise ResourceExhausted(f"layer has more than {self._limits.entries} entries")

    def _handle(self, directory: Directory) -> int:
        """Return an open descriptor of a directory, kept until too many are."""
        if directory.handle < 0:
            if len(self._handles) >= _HANDLES:
                for old in self._handles:
                    if old.handle >= 0:
                        os.close(old.handle)
                        old.handle = -1
                self._handles.clear()
            directory.handle = linux.openat2(self._root, directory.path(), os.O_PATH | os.O_DIRECTORY)
            self._handles.append(directory)
        return directory.handle

    def _write_file(self, parent: Directory, base: bytes, entry: Entry, stream: Stream) -> None:
        self._count()
        where = self._handle(parent)
        try:
            fd = os.open(base, _CREATE, entry.mode & 0o777, dir_fd=where)
        except FileExistsError:
            self._clear(parent, base)
            fd = os.open(base, _CREATE, entry.mode & 0o777, dir_fd=where)
        try:
            if entry.size:
                stream.copy(entry.size, fd)
            if entry.uid or entry.gid:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & 0o7000:  # after chown(2), which takes set-id bits away
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self.ignored_xattrs += attributes.set_xattrs(fd, entry.xattrs)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)
        self.inodes += 1
        self.bytes += entry.size + -entry.size % _PAGE

    def _make_directory(self, parent: Directory, base: bytes, entry: Entry) -> None:
        child = parent.children.get(base)
        if not isinstance(child, Directory):
            child = self._new_directory(parent, base)
        child.metadata = (entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs)

    def _describe_root(self, entry: Entry) -> None:
        if entry.kind != tar.DIRECTORY:
            raise InvalidArgument("the root of the layer is not a directory")
        self._tree.root.metadata = (entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs)

    def _new_directory(self, parent: Directory, base: bytes) -> Directory:
        opaque = False
        try:
            self._mkdir(parent, base)
        except FileExistsError:
            opaque = self._clear(parent, base)
            self._mkdir(parent, base)
        child = self._tree.add(parent, base)
        child.opaque = opaque
        return child

    def _mkdir(self, parent: Directory, base: bytes) -> None:
        self._count()
        os.mkdir(base, 0o700, dir_fd=self._handle(parent))
        self.inodes += 1
        self.bytes += _PAGE

    def _imply(self, parent: Directory, base: bytes) -> bool:
        """Make a directory that an entry's path needs and no entry described; True if a whiteout stood there."""
        try:
            self._mkdir(parent, base)
        except FileExistsError:
            found = os.stat(base, dir_fd=self._handle(parent), follow_symlinks=False)
            if not _is_whiteout(found):
                raise InvalidArgument(f"{shown(base)} in its path is not a directory") from None
            self._clear(parent, base)
            self._mkdir(parent, base)
            return True
        return False

    def _make_symlink(self, parent: Directory, base: bytes, entry: Entry) -> None:
        self._count()
        where = self._handle(parent)
        try:
            os.symlink(entry.link, base, dir_fd=where)
        except FileExistsError:
            self._clear(parent, base)
            os.symlink(entry.link, base, dir_fd=where)
        parent.children[base] = entry.link
        if entry.uid or entry.gid:
            os.chown(base, entry.uid, entry.gid, dir_fd=where, follow_symlinks=False)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=where, follow_symlinks=False)
        self.ignored_xattrs += len(entry.xattrs)
        self.inodes += 1

    def _make_link(self, parent: Directory, base: bytes, entry: Entry) -> None:
        self._count()
        steps = components(entry.link)
        source = self._tree.find(b"/".join(steps[:-1]))
        if not steps or source is None:
            raise InvalidArgument(f"hard link to {shown(entry.link)}, which is not in this layer")
        if source is parent and steps[-1] == base:
            return
        where = self._handle(parent)
        try:
            self._link(source, steps[-1], where, base)
        except FileNotFoundError:
            raise InvalidArgument(f"hard link to {shown(entry.link)}, which is not in this layer") from None
        except FileExistsError:
            self._clear(parent, base)
            self._link(source, steps[-1], where, base)
        target = source.children.get(steps[-1])
        if isinstance(target, bytes):  # a second name of a symbolic link is one, too
            parent.children[base] = target

    def _link(self, source: Directory, name: bytes, where: int, base: bytes) -> None:
        os.link(name, base, src_dir_fd=self._handle(source), dst_dir_fd=where, follow_symlinks=False)

    def _make_device(self, parent: Directory, base: bytes, entry: Entry) -> None:
        self._count()
        where = self._handle(parent)
        kind = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[entry.kind]
        major, minor = entry.device
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):  # the kernel's dev_t
            raise InvalidArgument(f"device number {major}:{minor} is not possible")
        device = os.makedev(major, minor)
        try:
            os.mknod(base, kind | entry.mode, device, dir_fd=where)
        except FileExistsError:
            self._clear(parent, base)
            os.mknod(base, kind | entry.mode, device, dir_fd=where)
        if entry.uid or entry.gid:
            os.chown(base, entry.uid, entry.gid, dir_fd=where, follow_symlinks=False)
        if entry.mode & 0o7000:
            os.chmod(base, entry.mode, dir_fd=where)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=where, follow_symlinks=False)
        self.ignored_xattrs += len(entry.xattrs)
        self.inodes += 1

    def _white_out(self, above: bytes, base: bytes) -> None:
        """Hide a name, or everything in a directory, of the layers below; aufs's own files are passed over."""
        if base == _OPAQUE:
            self._tree.directory(above).opaque = True
            return
        if base.startswith(_AUFS) or _AUFS in above:
            return
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise InvalidArgument("the whiteout names no file")
        parent = self._tree.directory(above)
        child = parent.children.get(hidden)
        if isinstance(child, Directory):
            child.opaque = True
        elif child is None:
            self._count()
            try:
                os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=self._handle(parent))
            except FileExistsError:  # a file of this layer stays, and hides what is below by being there
                return
            self.whiteouts += 1
            self.inodes += 1

    def _clear(self, parent: Directory, base: bytes) -> bool:
        """Remove what stands in the way of a new entry and return whether it was a whiteout."""
        where = self._handle(parent)
        found = os.stat(base, dir_fd=where, follow_symlinks=False)
        self._tree.forget(parent, base, os.close)
        if stat.S_ISDIR(found.st_mode):
            self.inodes -= removal.remove_tree(where, base)
            return False
        os.unlink(base, dir_fd=where)
        if found.st_nlink == 1:
            self.inodes -= 1
            self.bytes -= found.st_size + -found.st_size % _PAGE if stat.S_ISREG(found.st_mode) else 0
        return _is_whiteout(found)

    def finish(self, implicit: int, opaque: int) -> dict[str, int]:
        """Give the directories their metadata, write the two lists to their descriptors, and return the counts."""
        for directory in self._handles:
            if directory.handle >= 0:
                os.close(directory.handle)
        finisher = attributes.Finisher(implicit, opaque)
        finisher.run(self._tree.root, self._root)
        return {
            "entries": self.entries,
            "bytes": max(self.bytes, 0),
            "inodes": self.inodes,
            "whiteouts": self.whiteouts,
            "opaque": finisher.opaque.count,
            "implicit": finisher.implicit.count,
            "ignored_xattrs": self.ignored_xattrs + finisher.ignored_xattrs,
        }


def unpack(source: int, implicit: int, opaque: int, limits: Limits) -> dict[str, Any]:
    """Unpack the tar stream behind descriptor `source` into the root directory and return what Unpacked holds."""
    stream = Stream(source, limits.bytes)
    layer = Layer(limits)
    layer.read(stream)
    return {**layer.finish(implicit, opaque), "stream_bytes": stream.total}


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _explain(error: OSError, name: bytes) -> BulkheadError:
    """Return the error to answer for a failed system call on an entry."""
    kinds: dict[int | None, type[BulkheadError]] = {
        errno.ENOSPC: ResourceExhausted,
        errno.EDQUOT: ResourceExhausted,
        errno.EFBIG: ResourceExhausted,
        errno.EMLINK: ResourceExhausted,
        errno.E2BIG: ResourceExhausted,
        errno.ENAMETOOLONG: InvalidArgument,
        errno.EINVAL: InvalidArgument,
        errno.EPERM: InvalidArgument,
        errno.ENOENT: InvalidArgument,
        errno.ENOTDIR: InvalidArgument,
        errno.ELOOP: InvalidArgument,
    }
    return kinds.get(error.errno, Internal)(f"entry {shown(name)}: {error.strerror or error}")
