"""sandbox-svc's clients against servers of their protocols, and its own service against a client."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from bulkhead import paths, rpc, seqpacket
from bulkhead.errors import BulkheadError, DeadlineExceeded, NotFound, Unavailable
from bulkhead.proto import images_pb2, images_pb2_grpc, shim_pb2, streams_pb2, streams_pb2_grpc
from bulkhead.proto.containerd import task_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc
from bulkhead.ttrpc_frames import REQUEST, Decoder, request
from sandbox_svc import service
from sandbox_svc.images import Images
from sandbox_svc.rpc import exec as execs
from sandbox_svc.store.records import ShimBinding
from sandbox_svc.streams import Streams
from sandbox_svc.task import foreign
from sandbox_svc.task import zygote as zygotes
from sandbox_svc.task.events import EventSink
from sandbox_svc.task.link import Link
from sandbox_svc.task.start import start_again
from sandbox_svc.task.zygote import Zygote


class FakeImageService(images_pb2_grpc.ImagesServicer, cri_grpc.ImageServiceServicer):
    """Knows one image after it was pulled."""

    def __init__(self, pulled: bool) -> None:
        self.pulled, self.calls = pulled, list[str]()
        self.retained = threading.Event()
        #: What Retain says that it does not have.
        self.missing: list[str] = []

    def Resolve(self, request: Any, context: Any) -> images_pb2.ResolveResponse:
        self.calls.append("Resolve")
        if not self.pulled:
            raise NotFound(request.image)
        return images_pb2.ResolveResponse(
            image_id="sha256:1", repo_tags=["a:1"], config_json=b'{"config": {"User": "7"}}'
        )

    def PullImage(self, request: Any, context: Any) -> cri.PullImageResponse:
        self.calls.append("PullImage")
        self.pulled = True
        return cri.PullImageResponse(image_ref="sha256:1")

    def Retain(self, request: Any, context: Any) -> images_pb2.RetainResponse:
        self.calls.append(f"Retain {list(request.keys)}")
        self.retained.set()
        return images_pb2.RetainResponse(missing=["x", *self.missing])


@contextlib.contextmanager
def serving(state: Path, name: str, register: Any) -> Iterator[None]:
    socket = paths.service_socket(state, name)
    socket.parent.mkdir(parents=True, exist_ok=True)
    server = rpc.server(register, str(socket))
    try:
        yield
    finally:
        server.stop(0).wait(30)


def image_service(fake: FakeImageService) -> Any:
    def register(server: grpc.Server) -> None:
        images_pb2_grpc.add_ImagesServicer_to_server(fake, server)
        cri_grpc.add_ImageServiceServicer_to_server(fake, server)

    return register


def test_a_missing_image_is_pulled_once(tmp_path: Path) -> None:
    """Resolve, pull, resolve; afterwards only resolve."""
    fake = FakeImageService(pulled=False)
    with serving(tmp_path, "image-svc", image_service(fake)):
        images = Images(tmp_path, dict, tmp_path / "snapshots")
        found = images.resolve_or_pull("a:1", "", cri.PodSandboxConfig())
        assert (found.id, found.name, found.config) == ("sha256:1", "a:1", {"config": {"User": "7"}})
        images.resolve_or_pull("a:1", "", cri.PodSandboxConfig())
        assert fake.calls == ["Resolve", "PullImage", "Resolve", "Resolve"]
        images.close()


def test_image_svc_hears_of_valid_snapshots_when_it_is_back(tmp_path: Path) -> None:
    """Nothing is said before `watch`; then once for each time that image-svc comes up."""
    fake = FakeImageService(pulled=True)
    with serving(tmp_path, "image-svc", image_service(fake)):
        images = Images(tmp_path, lambda: {"k1": True, "k2": False}, tmp_path / "snapshots")
        images.resolve("a:1")
        assert not fake.retained.wait(0.2)
        images.watch()
        assert fake.retained.wait(30)
        assert "Retain ['k1', 'k2']" in fake.calls
    again = FakeImageService(pulled=True)
    with serving(tmp_path, "image-svc", image_service(again)):
        images.resolve("a:1")
        assert again.retained.wait(60)
        images.close()


def test_only_a_snapshot_that_must_be_there_is_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pods that are being made or removed while image-svc comes up give no cause for alarm; one that runs does."""
    fake = FakeImageService(pulled=True)
    fake.missing = ["made", "removed", "runs"]
    asked: list[dict[str, bool]] = []

    def valid() -> dict[str, bool]:
        asked.append({"made": False, "removed": not asked, "runs": True})
        return asked[-1]

    with serving(tmp_path, "image-svc", image_service(fake)):
        images = Images(tmp_path, valid, tmp_path / "snapshots")
        images.watch()
        deadline = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        images.close()

    assert caplog.messages == ["image-svc does not know 1 snapshots in use: runs"]


def test_a_ticket_names_its_shim_and_is_registered_there(tmp_path: Path) -> None:
    """The URL ends in the token that the shim was told, which begins with the shim's directory."""

    class Fake(streams_pb2_grpc.StreamsServicer):
        def Address(self, request: Any, context: Any) -> streams_pb2.AddressResponse:
            return streams_pb2.AddressResponse(base_url="http://127.0.0.1:1234/")

    told: list[shim_pb2.AddTicketRequest] = []
    link: Any = SimpleNamespace(
        binding=ShimBinding("/x/task", directory="/run/s/0123456789abcdef"),
        ours_call=lambda method, ticket, kind: told.append(ticket),
    )
    with serving(tmp_path, "stream-svc", lambda s: streams_pb2_grpc.add_StreamsServicer_to_server(Fake(), s)):
        streams = Streams(tmp_path)
        url = streams.url("exec", link, shim_pb2.AddTicketRequest())
        streams.close()
    assert url == f"http://127.0.0.1:1234/exec/{told[0].token}"
    assert told[0].token.startswith("0123456789abcdef-")
    assert len(told[0].token) >= 16 + 1 + 32
    assert told[0].ttl_ms == 60_000
    assert paths.stream_socket(tmp_path, told[0].token) == tmp_path / "s/0123456789abcdef/stream"


@contextlib.contextmanager
def zygote(state: Path, answers: list[dict[str, Any] | None]) -> Iterator[list[dict[str, Any] | None]]:
    """Answer orders in turn; None hangs up."""
    path = paths.zygote_socket(state)
    path.parent.mkdir(parents=True)
    listener = seqpacket.listen(str(path))
    orders: list[dict[str, Any] | None] = []

    def serve() -> None:
        for answer in answers:
            sock, _ = listener.accept()
            with sock:
                orders.append(seqpacket.receive(sock)[0])
                if answer is not None:
                    seqpacket.send(sock, answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield orders
    finally:
        thread.join(60)
        listener.close()


def test_the_zygote_is_ordered_and_its_refusals_are_raised(tmp_path: Path) -> None:
    """A fork answers a process; an error is raised with its code; a hang-up is Unavailable."""
    refusal = {"error": {"code": 4, "message": "too slow"}}
    with zygote(tmp_path, [{"forked": {"pid": 5, "start_time": 9}}, refusal, None, refusal]) as orders:
        client = Zygote(tmp_path, 77)
        assert client.fork("p" * 64).pid == 5
        with pytest.raises(DeadlineExceeded, match="too slow"):
            client.fork("p" * 64, "keeper", address="/f", service="v2")
        with pytest.raises(Unavailable, match="closed"):
            client.fork("p" * 64)
        assert client.working_crun() == ""
    assert orders[0] is not None
    assert orders[0]["fork"]["stream_gid"] == 77
    assert orders[0]["fork"]["directory"] == str(paths.shim_directory(tmp_path, "p" * 64))
    assert orders[1] is not None
    assert (orders[1]["fork"]["kind"], orders[1]["fork"]["address"]) == ("keeper", "/f")


def test_no_zygote_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket's path stands in the message."""
    monkeypatch.setattr(zygotes, "RESTART_PATIENCE", 0.1)
    with pytest.raises(Unavailable, match=r"fork\.sock"):
        Zygote(tmp_path, 0).fork("p")


def test_events_of_foreign_shims_are_accepted(tmp_path: Path) -> None:
    """Every Forward gets an answer, several in one read, too."""
    import socket

    sink = EventSink(tmp_path / "events.ttrpc")
    frame = b"".join(
        request(stream, "containerd.services.events.ttrpc.v1.Events", "Forward", b"", None, {}) for stream in (1, 3)
    )
    decoder, answered = Decoder(), list[int]()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(sink.path))
        sock.sendall(frame)
        while len(answered) < 2:
            answered += [frame.stream for frame in decoder.feed(sock.recv(4096)) if frame.kind != REQUEST]
    assert answered == [1, 3]
    assert Empty.DESCRIPTOR.full_name == "google.protobuf.Empty"
    assert task_pb2.DESCRIPTOR.package == "containerd.task.v2"


def test_unbuilt_rpcs_are_named_and_lists_are_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generic registration answers in messages, in bytes, in streams and in UNIMPLEMENTED."""
    item = cri.ListPodSandboxResponse(items=[cri.PodSandbox(id="x")])
    monkeypatch.setitem(service.SHORT, "ListPodSandbox", lambda node, request, context: item.SerializeToString())
    monkeypatch.setitem(service.SHORT, "Status", lambda node, request, context: cri.StatusResponse())
    for table in (service.SHORT, service.LONG):
        for name in ("CheckpointPod", "GetContainerEvents"):
            monkeypatch.delitem(table, name, raising=False)
    node: Any = None
    with serving(tmp_path, "sandbox-svc", service.register(node)):
        channel = rpc.channel(str(paths.service_socket(tmp_path, "sandbox-svc")))
        stub = cri_grpc.RuntimeServiceStub(channel)
        assert stub.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30) == item
        assert stub.Status(cri.StatusRequest(), timeout=30) == cri.StatusResponse()
        for call, name in (
            (lambda: stub.CheckpointPod(cri.CheckpointPodRequest(), timeout=30), "CheckpointPod"),
            (lambda: list(stub.GetContainerEvents(cri.GetEventsRequest(), timeout=30)), "GetContainerEvents"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.details() == f"{name} is not implemented"
        channel.close()


def test_exec_output_comes_from_the_answer_or_its_memory_file(tmp_path: Path) -> None:
    """Short output stands in the answer, long output in the file: stdout first, then stderr."""
    answer = shim_pb2.ExecSyncResponse(stdout=b"o", stderr=b"e")
    assert execs._output(answer, []) == (b"o", b"e")
    file = tmp_path / "memory"
    file.write_bytes(b"OUTERR!")
    with file.open("rb") as handle:
        long = shim_pb2.ExecSyncResponse(stdout_length=3, stderr_length=4)
        assert execs._output(long, [handle.fileno()]) == (b"OUT", b"ERR!")


def test_every_error_of_ours_can_be_raised_with_its_step() -> None:
    """A creation's failure keeps its code and gains the step that failed."""
    codes = [kind for kind in BulkheadError.__subclasses__() if kind.__module__ == BulkheadError.__module__]
    assert codes
    for kind in codes:
        assert str(kind("step: why")) == "step: why"


def test_what_a_foreign_shims_start_opened_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log FIFO is held until the container is created; a failing start or a link given up holds nothing."""
    held = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(foreign, "held_log", lambda place: os.dup(held))
    before = len(os.listdir("/proc/self/fd"))

    def fail(*_: object, **__: object) -> foreign.Started:
        raise Unavailable("no shim")

    monkeypatch.setattr(foreign, "start", fail)
    binding = ShimBinding(str(tmp_path / "task"), binary="/shim", foreign_service="v2")
    link = Link(binding)
    runtime: Any = SimpleNamespace(options=lambda: None)
    node: Any = None
    with pytest.raises(Unavailable):
        start_again(node, link, "c", tmp_path, runtime)
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.setattr(foreign, "start", lambda *_, **__: foreign.Started("", "v2"))
    start_again(node, link, "c", tmp_path, runtime)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    link.close()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(held)
