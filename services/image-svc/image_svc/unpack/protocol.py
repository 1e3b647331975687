"""What image-svc and its unpack helper say to each other.

One SOCK_SEQPACKET connection is one operation: the client sends `{"op": NAME, …}` (and, to unpack, a descriptor that
the layer's blob comes from: gzip, zstd or a plain tar), the helper answers `{"ok": {…}}` or
`{"error": {"code": GRPC_CODE, "message": TEXT}}`. Hanging up before the answer kills the worker.

A snapshot is the directory `<root>/snapshots/<name>`, its name a decimal number of at most nine digits chosen by
image-svc and never used again. Inside stand `fs` (the tree), `work` (overlayfs's, writable snapshots only) and, for a
layer, `opaque` and `implicit` (NUL-ended paths of its opaque directories and of those it never described) and
`unpacking` or `pending` until it has been unpacked and settled. For `apply` alone the name is a path: of a directory
that a proxy snapshotter has prepared.
"""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bulkhead.errors import InvalidArgument, ResourceExhausted

#: overlayfs stacks at most 500 lower layers (OVL_MAX_STACK, fs/overlayfs/params.h); images stay below 128.
MAX_LAYERS = 500

_NAME = re.compile(r"[1-9][0-9]{0,8}")


class DiskFull(ResourceExhausted):
    """There is no room left for what is to be written; unlike other limits, one that an administrator can raise."""


@dataclass(frozen=True)
class Limits:
    """What one layer may cost; an excess fails the unpacking with ResourceExhausted or DeadlineExceeded."""

    #: Files, directories, links and whiteouts, directories that the layer implies included.
    entries: int = 2_000_000
    #: Bytes of the tar stream, headers and padding included.
    bytes: int = 64 * 1024**3
    #: Bytes of one path within the layer (PATH_MAX is 4096 with its NUL), and its components.
    path_length: int = 4095
    path_depth: int = 256
    #: Seconds from request to answer, and of processor time in each of the two processes.
    seconds: float = 1800.0
    #: Extended attributes of one entry, and bytes of all their names and values in the layer.
    xattrs: int = 256
    xattr_bytes: int = 64 * 1024**2

    def within(self, bound: "Limits") -> "Limits":
        """Return these limits, each lowered to `bound` where it is higher."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(bound), strict=True)
        return Limits(*(min(a, b) for a, b in pairs))


@dataclass(frozen=True)
class Unpacked:
    """What a layer turned out to hold."""

    #: Directory entries made, directories that the layer only implied included.
    entries: int
    #: Disk space of the tree in bytes, files rounded up to 4 KiB blocks, and its inodes.
    bytes: int
    inodes: int
    #: Bytes read from the stream, up to its end.
    stream_bytes: int
    whiteouts: int
    opaque: int
    #: Directories that were implied and whose mode and owner `settle` takes from a lower layer.
    implicit: int
    #: Extended attributes left out: other than user.*, security.capability and ACLs, or unknown to the file system.
    ignored_xattrs: int
    #: Digest of the uncompressed stream, with the algorithm asked for.
    diff_id: str


def unpacked(values: dict[str, Any]) -> dict[str, Any]:
    """Return what an Unpacked holds, taken from a worker's answer, which is not trusted to be one."""
    names = Unpacked.__dataclass_fields__
    return {name: str(values[name])[:200] if name == "diff_id" else int(values[name]) for name in names}


def name(value: Any) -> str:
    """Return a snapshot's name if it is one, else raise InvalidArgument."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidArgument(f"snapshot name {value!r} is not a decimal number of 1 to 9 digits")
    return value


def names(values: Any, limit: int = MAX_LAYERS) -> list[str]:
    """Return a list of at most `limit` different snapshot names, else raise InvalidArgument."""
    if not isinstance(values, list | tuple):
        raise InvalidArgument(f"snapshot names are a {type(values).__name__}, expected a list")
    if len(values) > limit:
        raise InvalidArgument(f"{len(values)} snapshots, at most {limit} are possible")
    checked = [name(value) for value in values]
    if repeated := [value for value, count in Counter(checked).items() if count > 1]:
        raise InvalidArgument(f"snapshot {repeated[0]} is named twice; overlayfs refuses such a stack")
    return checked
