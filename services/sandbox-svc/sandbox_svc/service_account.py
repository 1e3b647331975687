"""A pod's service account, which the CRI does not name: it is read from the token that the kubelet mounts.

The token is a JWT whose subject is `system:serviceaccount:<namespace>:<name>` (kubernetes.io, "Service
account tokens"). Its signature is not checked: it comes from the kubelet, which says everything else of the pod, too.
"""

import base64
import binascii
import json
import os
import re
import stat
from collections.abc import Iterable

from bulkhead.proto.runtime.v1 import api_pb2 as cri

#: Where every pod has it, unless it asks for none (automountServiceAccountToken).
MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
#: Bytes of a token; the API server's have one to two thousand.
LIMIT = 64 * 1024
_SUBJECT = re.compile(r"system:serviceaccount:([a-z0-9.-]{1,63}):([a-z0-9.-]{1,253})")


def of(mounts: Iterable[cri.Mount], namespace: str) -> str:
    """Return the name of the service account whose token a container gets; "" if there is none that can be read.

    An account of another namespace than the pod's counts for none.
    """
    for mount in mounts:
        if os.path.normpath(mount.container_path or "/") == MOUNT and mount.host_path:
            found = subject(_read(os.path.join(mount.host_path, "token")))
            return found[1] if found[0] == namespace else ""
    return ""


def subject(token: bytes) -> tuple[str, str]:
    """Return namespace and name of a token's subject; two empty texts for what is no service account's token."""
    parts = token.strip().split(b".")
    if len(parts) != 3:
        return "", ""
    try:
        claims = json.loads(base64.b64decode(parts[1] + b"=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return "", ""
    said = claims.get("sub") if isinstance(claims, dict) else None
    found = _SUBJECT.fullmatch(said) if isinstance(said, str) else None
    return (found[1], found[2]) if found else ("", "")


def _read(path: str) -> bytes:
    """Return a token's bytes; none for what is too large, or no regular file."""
    try:
        # Not blocking: whatever lies there, a pipe is not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        facts = os.fstat(fd)
        return os.read(fd, LIMIT) if stat.S_ISREG(facts.st_mode) and facts.st_size <= LIMIT else b""
    except OSError:
        return b""
    finally:
        os.close(fd)
