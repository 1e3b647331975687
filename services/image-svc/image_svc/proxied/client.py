"""One proxy snapshotter as image-svc calls it: bounded calls, and errors that name it, its socket and the cure."""

import errno
import getpass
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc

from bulkhead import rpc
from bulkhead.errors import (
    AlreadyExists,
    BulkheadError,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    Unknown,
    from_code,
)
from bulkhead.proto.containerd import snapshots_pb2 as pb
from bulkhead.proto.containerd.snapshots_pb2_grpc import SnapshotsStub
from bulkhead.proto.containerd.types_pb2 import Mount
from image_svc.patience import Patience
from image_svc.unpack.client import Usage

#: containerd's namespace of everything that a kubelet asks for.
NAMESPACE = "k8s.io"
#: Seconds that a look-up, a preparation (which may ask a registry) and a commit (which may count files) may take.
LOOK, PREPARE, COMMIT = 10.0, 120.0, 300.0
#: Seconds that a connect may take, which on a unix socket waits for the server's backlog only.
_CONNECT = 2.0
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", rpc.MESSAGE_LIMIT),
    # The least is also how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", int(_CONNECT * 1000)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", int(_CONNECT * 1000)),
    ("grpc.default_authority", "localhost"),
    ("grpc.use_local_subchannel_pool", 1),
]


class Proxy:
    """Calls a proxy snapshotter; safe to share between threads.

    Besides what the snapshotter itself says, every call raises Unavailable if it does not answer, PermissionDenied if
    its socket is closed to this user, and DeadlineExceeded.
    """

    def __init__(self, name: str, address: str, root: Path | None) -> None:
        self.name = name
        self.address = address
        self._root = root
        self._channel = grpc.insecure_channel(f"unix:{address}", options=_OPTIONS)
        self._stub = SnapshotsStub(self._channel)
        #: Whether something was removed, maybe by an earlier process, that may not have been cleaned up yet.
        self._removed = True

    def require_root(self) -> None:
        """Raise FailedPrecondition if the configuration does not say which directory its mounts lie below."""
        if self._root is None:
            text = f"proxy_plugins.{self.name}.exports has no root: the directory that its snapshots lie below"
            raise FailedPrecondition(f"snapshotter {self.name}: {text}")

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def has(self, name: str, patience: Patience | None = None) -> bool:
        """Tell whether there is a committed snapshot of that name."""
        try:
            answer = self._call(
                self._stub.Stat, pb.StatSnapshotRequest(snapshotter=self.name, key=name), LOOK, patience
            )
        except NotFound:
            return False
        return bool(answer.info.kind == pb.COMMITTED)

    def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], patience: Patience | None = None
    ) -> list[Mount]:
        """Make a writable snapshot on top of a committed one ("" for none) and return its mounts.

        AlreadyExists: the key is taken, or the labels say what is to come of it and the snapshotter has that.
        """
        request = pb.PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=labels)
        return list(self._call(self._stub.Prepare, request, PREPARE, patience).mounts)

    def view(self, key: str, parent: str) -> list[Mount]:
        """Make a read-only snapshot and return its mounts."""
        request = pb.ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent)
        return list(self._call(self._stub.View, request, PREPARE).mounts)

    def mounts(self, key: str, patience: Patience | None = None) -> list[Mount]:
        """Return the mounts of a writable snapshot that is there."""
        request = pb.MountsRequest(snapshotter=self.name, key=key)
        return list(self._call(self._stub.Mounts, request, PREPARE, patience).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str], patience: Patience | None = None) -> None:
        """Make a writable snapshot one that can be a parent, under a name; success if the name is there already."""
        request = pb.CommitSnapshotRequest(snapshotter=self.name, name=name, key=key, labels=labels)
        try:
            self._call(self._stub.Commit, request, COMMIT, patience)
        except AlreadyExists:
            self.remove(key)
        except NotFound:
            if not self.has(name, patience):
                raise

    def remove(self, key: str) -> None:
        """Remove a snapshot; nothing by that name is success. FailedPrecondition while others stand on it."""
        self._removed = True
        try:
            self._call(self._stub.Remove, pb.RemoveSnapshotRequest(snapshotter=self.name, key=key), LOOK * 3)
        except NotFound:
            return

    def clean(self) -> None:
        """Have the files and mounts of what was removed go, for snapshotters that do not see to that at once."""
        if not self._removed:
            return
        self._removed = False
        try:
            self._asked(self._stub.Cleanup, pb.CleanupRequest(snapshotter=self.name), COMMIT)
        except Unimplemented:
            return
        except BulkheadError:
            self._removed = True
            raise

    def usage(self, key: str) -> Usage:
        """Return what one snapshot takes, without those beneath it."""
        answer = self._call(self._stub.Usage, pb.UsageRequest(snapshotter=self.name, key=key), LOOK * 3)
        return Usage(int(answer.size), int(answer.inodes))

    def unfinished(self) -> list[str]:
        """Return the keys of all writable snapshots."""

        def listed(request: pb.ListSnapshotsRequest, **options: Any) -> list[str]:
            found = self._stub.List(request, **options)
            return [info.name for part in found for info in part.info if info.kind == pb.ACTIVE]

        try:
            return list(self._asked(listed, pb.ListSnapshotsRequest(snapshotter=self.name), LOOK * 3))
        except (NotFound, Unknown) as error:
            # How containerd's storage, which most are built on, says that there was never anything.
            if "bucket does not exist" not in str(error):
                raise
            return []

    def _call(self, method: Any, request: Any, limit: float, patience: Patience | None = None) -> Any:
        """Call, and be woken when the caller's patience ends."""
        if patience is None:
            return self._asked(method, request, limit)

        def watched(asked: Any, **options: Any) -> Any:
            call = method.future(asked, **options)
            with patience.interruptible(call.cancel):
                return call.result()

        try:
            return self._asked(watched, request, min(limit, patience.left))
        except BulkheadError:
            if patience.cancelled:
                patience.check()
            raise

    def _asked(self, method: Callable[..., Any], request: Any, limit: float) -> Any:
        """Call, and once more if the connection was lost to a snapshotter that is there: every call may be repeated."""
        metadata = (*rpc.metadata(), ("containerd-namespace", NAMESPACE))
        until = time.monotonic() + limit
        for again in (False, True):
            left = max(until - time.monotonic(), 0.0)
            try:
                return method(request, timeout=left, metadata=metadata, wait_for_ready=again)
            except grpc.FutureCancelledError as error:
                raise Unavailable(f"{self}: the call was cancelled") from error
            except grpc.RpcError as error:
                if not isinstance(error, grpc.Call):
                    raise
                lost = error.code() is grpc.StatusCode.UNAVAILABLE
                if lost and (closed := self._refused()):
                    raise closed from error
                if not lost or again:
                    raise self._explained(error, limit) from error
        raise Unavailable(f"{self} does not answer")

    def _explained(self, error: grpc.Call, limit: float) -> BulkheadError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{self} did not answer within {round(limit, 1):g} s")
        return from_code(code.value[0], f"{self}: {details}")

    def _refused(self) -> BulkheadError | None:
        """Return why nobody can be reached at the socket, None if somebody can."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_CONNECT)
            try:
                probe.connect(self.address)
            except OSError as error:
                return self._closed() if error.errno in (errno.EACCES, errno.EPERM) else self._dead(error)
        return None

    def _closed(self) -> PermissionDenied:
        user = _user()
        cure = f"chgrp {user} {self.address} && chmod g+rw {self.address} whenever it is made, and let it pass the path"
        return PermissionDenied(f"{self} is closed to user {user!r} of image-svc: {cure}")

    def _dead(self, error: OSError) -> Unavailable:
        return Unavailable(f"{self} does not answer: {error.strerror or error}")

    def __str__(self) -> str:
        return f"snapshotter {self.name} at {self.address}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
