"""A fake proxy snapshotter: containerd's snapshots API over a dictionary, in this process, failing where it is told."""

import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from bulkhead.proto.containerd import snapshots_pb2 as pb
from bulkhead.proto.containerd.snapshots_pb2_grpc import SnapshotsServicer, add_SnapshotsServicer_to_server
from bulkhead.proto.containerd.types_pb2 import Mount

TARGET = "containerd.io/snapshot.ref"
ROOT = "/var/lib/fake"


class FakeSnapshots(SnapshotsServicer):
    """Keeps snapshots by name or key."""

    def __init__(self) -> None:
        self.found: dict[str, pb.Info] = {}
        #: Every call in order: method and key.
        self.calls: list[tuple[str, str]] = []
        #: Labels of each preparation, by the snapshot that was to come of it.
        self.labels: dict[str, dict[str, str]] = {}
        self.metadata: list[dict[str, str]] = []
        #: Chain ids that it takes by itself; those that it claims to have and has not.
        self.takes: set[str] = set()
        self.lies: set[str] = set()
        #: Method to the status that it answers with.
        self.fails: dict[str, grpc.StatusCode] = {}
        #: Seconds before every answer.
        self.slow = 0.0
        #: Instead of the mounts of an overlay snapshotter.
        self.mounts: list[Mount] | None = None

    def names(self, kind: "pb.Kind") -> set[str]:
        """Return what there is of a kind."""
        return {name for name, info in self.found.items() if info.kind == kind}

    def Prepare(self, request: pb.PrepareSnapshotRequest, context: grpc.ServicerContext) -> pb.PrepareSnapshotResponse:
        """Make an active snapshot, or take it."""
        self._begin("Prepare", request.key, context)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        if request.parent and request.parent not in self.found:
            context.abort(grpc.StatusCode.NOT_FOUND, "parent snapshot does not exist: not found")
        if request.key in self.found:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"snapshot {request.key}: already exists")
        target = request.labels.get(TARGET, "")
        self.labels[target or request.key] = dict(request.labels)
        if target in self.lies:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"target snapshot {target}: already exists")
        if target in self.takes:
            self.found[target] = pb.Info(name=target, parent=request.parent, kind=pb.COMMITTED)
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"target snapshot {target}: already exists")
        self.found[request.key] = pb.Info(name=request.key, parent=request.parent, kind=pb.ACTIVE)
        return pb.PrepareSnapshotResponse(mounts=self._mounts(request.key))

    def Mounts(self, request: pb.MountsRequest, context: grpc.ServicerContext) -> pb.MountsResponse:
        """Return the mounts of an active snapshot."""
        self._begin("Mounts", request.key, context)
        return pb.MountsResponse(mounts=self._mounts(request.key))

    def Commit(self, request: pb.CommitSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        """Give an active snapshot its name."""
        self._begin("Commit", request.name, context)
        info = self.found.pop(request.key, None)
        if info is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "not found")
        else:
            self.found[request.name] = pb.Info(name=request.name, parent=info.parent, kind=pb.COMMITTED)
        return Empty()

    def Remove(self, request: pb.RemoveSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        """Drop one that none stands on."""
        self._begin("Remove", request.key, context)
        if any(info.parent == request.key for info in self.found.values()):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "cannot remove snapshot with child")
        if self.found.pop(request.key, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "not found")
        return Empty()

    def Stat(self, request: pb.StatSnapshotRequest, context: grpc.ServicerContext) -> pb.StatSnapshotResponse:
        """Describe one."""
        self._begin("Stat", request.key, context)
        if request.key not in self.found:
            context.abort(grpc.StatusCode.NOT_FOUND, "not found")
        return pb.StatSnapshotResponse(info=self.found[request.key])

    def List(
        self, request: pb.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListSnapshotsResponse]:
        """List all."""
        self._begin("List", "", context)
        yield pb.ListSnapshotsResponse(info=list(self.found.values()))

    def Usage(self, request: pb.UsageRequest, context: grpc.ServicerContext) -> pb.UsageResponse:
        """Return a size that shows it came from here."""
        self._begin("Usage", request.key, context)
        return pb.UsageResponse(size=8192, inodes=2)

    def _begin(self, method: str, key: str, context: grpc.ServicerContext) -> None:
        self.calls.append((method, key))
        time.sleep(self.slow)
        if method in self.fails:
            context.abort(self.fails[method], f"{method} fails here")

    def _mounts(self, key: str) -> list[Mount]:
        if self.mounts is not None:
            return self.mounts
        own = f"{ROOT}/snapshots/{abs(hash(key))}"
        parents: list[str] = []
        parent = self.found[key].parent
        while parent:
            parents.append(f"{ROOT}/snapshots/{abs(hash(parent))}/fs")
            parent = self.found[parent].parent
        if not parents:
            return [Mount(type="bind", source=f"{own}/fs", options=["rw", "rbind"])]
        options = [f"workdir={own}/work", f"upperdir={own}/fs", f"lowerdir={':'.join(parents)}"]
        return [Mount(type="overlay", source="overlay", options=options)]


@contextmanager
def fake_snapshots(socket: Path) -> Iterator[FakeSnapshots]:
    """Serve a fake on a socket."""
    fake = FakeSnapshots()
    server: Any = grpc.server(futures.ThreadPoolExecutor(8))
    add_SnapshotsServicer_to_server(fake, server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()
