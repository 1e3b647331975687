"""Content digests as OCI descriptors write them: `<algorithm>:<lower-case hex>`."""

import hashlib
import re
from typing import TYPE_CHECKING

from bulkhead.errors import DataLoss, InvalidArgument

if TYPE_CHECKING:
    from hashlib import _Hash

#: Hex digits of every algorithm that content may be named by (OCI image-spec, descriptor.md, "Registered Algorithms").
LENGTHS = {"sha256": 64, "sha512": 128}

_DIGEST = re.compile(r"([a-z0-9]+):([0-9a-f]+)")


def check(value: object, where: str) -> str:
    """Return a well-formed digest of a known algorithm; InvalidArgument names `where` and the value."""
    match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    if match is None or len(match[2]) != LENGTHS.get(match[1]):
        raise InvalidArgument(f"{where}: {str(value)[:200]!r} is not a sha256 or sha512 digest")
    return match[0]


def of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of some bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def hasher(digest: str) -> "_Hash":
    """Return a fresh hash of the algorithm that a checked digest names."""
    return hashlib.new(digest.partition(":")[0])


def verify(data: bytes, digest: str, where: str) -> None:
    """Raise DataLoss if the bytes are not what the checked digest promises."""
    found = of(data, digest.partition(":")[0])
    if found != digest:
        raise DataLoss(f"{where}: content has digest {found}, expected {digest}")
