"""image-svc's side of the unpack helper: blocking calls, each on a connection of its own, from any thread."""

import dataclasses
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulkhead import seqpacket
from bulkhead.errors import DeadlineExceeded, Unavailable, from_code
from image_svc.unpack.protocol import DiskFull, Limits, Unpacked

#: Seconds beyond a limit the helper itself keeps before its silence counts as a failure.
GRACE = 15.0
#: Seconds that a call waits for a helper that is being started anew.
RESTART_PATIENCE = 10.0
_PAGE = 1000


@dataclass(frozen=True)
class Usage:
    """Disk space of a snapshot: bytes of allocated blocks and inodes, hard links counted once."""

    bytes: int
    inodes: int


class UnpackerGone(Unavailable):
    """The helper is not there, or ended before it answered."""


class UnpackClient:
    """Asks the unpack helper that listens on `path`; safe to share between threads.

    Every call raises Unavailable when the helper is not there or dies, InvalidArgument for a name that is not a
    decimal number, and ResourceExhausted when the disk is full, besides what it says itself. `timeout` is in seconds.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def unpack(self, name: str, stream: int, limits: Limits, algorithm: str = "sha256") -> Unpacked:
        """Unpack a layer blob (a tar, plain or as gzip or zstd), read from descriptor `stream` to its end.

        It becomes the new snapshot `name`. The descriptor stays the caller's: duplicate or close it as you like once
        this returns, and close the write end of a pipe to end the layer (a stream that ends within an entry is
        DataLoss; one that ends between two entries succeeds, so compare the diff id, which is a digest of that
        algorithm, before settling). An earlier attempt under that name that was not
        settled is replaced; a settled one is AlreadyExists. InvalidArgument names the entry that is malformed or
        climbs out of the layer; ResourceExhausted and DeadlineExceeded name the limit.
        The layer may not be used before `settle`.
        """
        request = {"op": "unpack", "name": name, "limits": dataclasses.asdict(limits), "algorithm": algorithm}
        return Unpacked(**self._call(request, limits.seconds + GRACE, [stream]))

    def apply(
        self,
        snapshotter: str,
        path: str,
        lowers: Sequence[str],
        stream: int,
        limits: Limits,
        algorithm: str = "sha256",
    ) -> Unpacked:
        """Unpack a layer blob, as `unpack` does, into an empty directory of a proxy snapshotter; it is then on disk.

        `lowers` are the directories of the layers beneath, the nearest first. PermissionDenied for a directory that
        is none of that snapshotter's, FailedPrecondition for one that is not there or not empty.
        """
        request = {
            "op": "apply",
            "snapshotter": snapshotter,
            "name": path,
            "lowers": list(lowers),
            "limits": dataclasses.asdict(limits),
            "algorithm": algorithm,
        }
        # Settling and syncing come after what the limit is for.
        return Unpacked(**self._call(request, limits.seconds + 900.0 + GRACE, [stream]))

    def settle(self, chain: Sequence[str], *, timeout: float = 600.0) -> int:
        """Give directories that layers only implied the mode, owner, times and xattrs of the nearest layer beneath.

        `chain` are unpacked layers, base first; those that are settled already are left as they are. Returns how many
        directories were changed. NotFound: a name is not unpacked.
        """
        return int(self._call({"op": "settle", "chain": list(chain)}, timeout)["settled"])

    def prepare(self, name: str, chain: Sequence[str], *, timeout: float = 30.0) -> None:
        """Make the writable snapshot `name`: an empty `fs`, with mode and owner of the topmost layer's, and `work`.

        `chain` are settled layers, base first. A snapshot that is there already is left as it is.
        """
        self._call({"op": "prepare", "name": name, "chain": list(chain)}, timeout)

    def copy(self, name: str, chain: Sequence[str], *, timeout: float = 1800.0) -> None:
        """Make the writable snapshot `name` with a full copy of what overlayfs would show of `chain` (base first).

        A snapshot that is there already and complete is left as it is.
        """
        self._call({"op": "copy", "name": name, "chain": list(chain)}, timeout)

    def remove(self, name: str, *, timeout: float = 30.0) -> None:
        """Take the snapshot away at once; its files go in the background. Nothing by that name is success."""
        self._call({"op": "remove", "name": name}, timeout)

    def usages(self, names: Sequence[str], *, timeout: float = 60.0) -> dict[str, Usage]:
        """Walk snapshots' trees and count their blocks and inodes; those that are not there are left out.

        For layers Unpacked says so already.
        """
        found: dict[str, Usage] = {}
        for start in range(0, len(names), _PAGE):
            page = list(names[start : start + _PAGE])
            answer = self._call({"op": "usage", "names": page}, timeout)["usages"]
            found.update({name: Usage(*pair) for name, pair in answer.items()})
        return found

    def sync(self, *, timeout: float = 300.0) -> None:
        """Write everything in the file system of the snapshots to disk (syncfs(2)); before a layer is committed."""
        self._call({"op": "sync"}, timeout)

    def list(self) -> list[tuple[str, bool]]:
        """Return the snapshots on disk in numerical order, each with whether it is settled or prepared."""
        found: list[tuple[str, bool]] = []
        while page := self._call({"op": "list", "after": int(found[-1][0]) if found else 0}, 30.0)["snapshots"]:
            found.extend((name, bool(complete)) for name, complete in page)
        return found

    def ping(self, *, timeout: float = 5.0) -> None:
        """Return if the helper answers; waits for no restart."""
        self._call({"op": "ping"}, timeout, patience=0)

    def _connect(self, patience: float) -> socket.socket:
        """Connect, trying for `patience` seconds: nothing was sent yet, so nothing is ordered twice."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return seqpacket.connect(self._path)
            except Unavailable as error:
                if time.monotonic() >= deadline:
                    raise UnpackerGone(f"unpack helper: {error}") from error
                time.sleep(0.05)

    def _call(
        self,
        request: dict[str, Any],
        timeout: float,
        fds: Sequence[int] = (),
        *,
        patience: float = RESTART_PATIENCE,
    ) -> dict[str, Any]:
        with self._connect(patience) as connection:
            connection.settimeout(timeout)
            try:
                seqpacket.send(connection, request, fds)
                answer, extra = seqpacket.receive(connection)
            except TimeoutError as error:
                raise DeadlineExceeded(f"unpack helper: {request['op']} took longer than {timeout:g} s") from error
            except OSError as error:
                raise UnpackerGone(f"unpack helper: {request['op']}: {error.strerror or error}") from error
        for fd in extra:
            os.close(fd)
        if answer is None:
            raise UnpackerGone(f"unpack helper ended during {request['op']}")
        if failure := answer.get("error"):
            text = str(failure["message"])
            raise DiskFull(text) if failure.get("full") else from_code(int(failure["code"]), text)
        return dict(answer["ok"])
