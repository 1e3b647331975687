"""The proxy: what passes through it, and what becomes of calls whose backend is not there."""

import threading

import grpc
import pytest

from bulkhead import errors, log, rpc
from bulkhead.config.model import Config
from bulkhead.proto.runtime.v1 import api_pb2
from cri_frontend.server import Frontend

from .conftest import Stack, until


def code(error: "pytest.ExceptionInfo[grpc.RpcError]") -> grpc.StatusCode:
    assert isinstance(error.value, grpc.Call)
    return error.value.code()


def details(error: "pytest.ExceptionInfo[grpc.RpcError]") -> str:
    assert isinstance(error.value, grpc.Call)
    return error.value.details() or ""


def test_both_services_are_reached(stack: Stack) -> None:
    """Calls of the runtime service go to sandbox-svc, those of the image service to image-svc."""
    listed = stack.runtime.ListContainers(api_pb2.ListContainersRequest(), timeout=30)
    image = stack.images.ImageStatus(api_pb2.ImageStatusRequest(), timeout=30)

    assert listed.containers[0].id == "c1"
    assert image.image.id == "i1"


def test_metadata_passes_both_ways(stack: Stack) -> None:
    """The caller's keys reach the backend, the backend's initial and trailing ones the caller, binary ones included."""
    call = stack.runtime.ListContainers.future(
        api_pb2.ListContainersRequest(), timeout=10, metadata=(("x-mine", "a"), ("x-raw-bin", b"\x00\xff"))
    )
    call.result()

    assert stack.tiny.metadata["x-mine"] == "a"
    assert stack.tiny.metadata["x-raw-bin"] == b"\x00\xff"
    assert ("x-first", "1") in [tuple(pair) for pair in call.initial_metadata()]
    assert dict(call.trailing_metadata()) == {
        "x-last": "2",
        "grpc-status-details-bin": b"\x08\x05",
    }


def test_every_call_carries_a_correlation_id(stack: Stack) -> None:
    """The frontend makes an id where the caller sent none, and hands on one that is fit for a log line."""
    stack.runtime.ListContainers(api_pb2.ListContainersRequest(), timeout=30)
    made = stack.tiny.metadata[rpc.CORRELATION_KEY]
    stack.runtime.ListContainers(api_pb2.ListContainersRequest(), timeout=10, metadata=((rpc.CORRELATION_KEY, "ab-1"),))
    kept = stack.tiny.metadata[rpc.CORRELATION_KEY]
    stack.runtime.ListContainers(api_pb2.ListContainersRequest(), timeout=10, metadata=((rpc.CORRELATION_KEY, "a b"),))
    refused = stack.tiny.metadata[rpc.CORRELATION_KEY]

    assert len(made) == len(log.new_correlation())
    assert kept == "ab-1"
    assert refused != "a b"


def test_a_call_without_deadline_gets_one(stack: Stack) -> None:
    """A caller that sets no deadline reports centuries; the backend sees the proxy's bound."""
    stack.runtime.ListContainers(api_pb2.ListContainersRequest())

    assert stack.tiny.left is not None
    assert 100 < stack.tiny.left <= 120


def test_the_callers_deadline_is_kept(stack: Stack) -> None:
    """A deadline shorter than the proxy's bound reaches the backend."""
    stack.runtime.ListContainers(api_pb2.ListContainersRequest(), timeout=7)

    assert stack.tiny.left is not None
    assert stack.tiny.left <= 7


def test_errors_keep_code_and_text(stack: Stack) -> None:
    """What a backend says of a call is what the caller reads, UNAVAILABLE included, and it is not repeated."""
    stack.tiny.fail = errors.Unavailable("registry.example does not answer")
    with pytest.raises(grpc.RpcError) as error:
        stack.images.ImageStatus(api_pb2.ImageStatusRequest(), timeout=30)

    assert code(error) is grpc.StatusCode.UNAVAILABLE
    assert details(error) == "registry.example does not answer"
    assert stack.tiny.calls == ["ImageStatus"]


def test_a_method_the_backend_lacks_is_unimplemented(stack: Stack) -> None:
    """An RPC that a backend does not serve comes back with its own code."""
    with pytest.raises(grpc.RpcError) as error:
        stack.runtime.CheckpointContainer(api_pb2.CheckpointContainerRequest(), timeout=30)

    assert code(error) is grpc.StatusCode.UNIMPLEMENTED


def test_an_absent_backend_is_named(stack: Stack) -> None:
    """A call waits backend_wait seconds for a backend that is down, then fails with its name."""
    stack.down("image-svc")
    with pytest.raises(grpc.RpcError) as error:
        stack.images.ImageStatus(api_pb2.ImageStatusRequest(), timeout=30)

    assert code(error) is grpc.StatusCode.UNAVAILABLE
    assert details(error).startswith("image-svc is not running")
    assert stack.tiny.calls == []


def test_a_call_waits_for_a_restart(stack: Stack) -> None:
    """A call made while the backend is down succeeds once it is back in time."""
    stack.down("image-svc")
    timer = threading.Timer(0.2, stack.up, ["image-svc"])
    timer.start()
    image = stack.images.ImageStatus(api_pb2.ImageStatusRequest(), timeout=30)
    timer.join()

    assert image.image.id == "i1"
    assert stack.tiny.calls == ["ImageStatus"]


def test_a_backend_can_come_and_go(stack: Stack) -> None:
    """Calls work again after each of several restarts."""
    for _ in range(3):
        stack.down("sandbox-svc")
        stack.up("sandbox-svc")
        assert stack.runtime.ListContainers(api_pb2.ListContainersRequest(), timeout=30).containers


def test_a_change_is_never_sent_twice(stack: Stack) -> None:
    """A call in flight when its backend dies fails with the backend's name, and the new backend does not see it."""
    call = stack.runtime.StopContainer.future(api_pb2.StopContainerRequest(), timeout=30)
    assert stack.tiny.entered.acquire(timeout=60)
    stack.down("sandbox-svc")
    stack.up("sandbox-svc")
    with pytest.raises(grpc.RpcError) as error:
        call.result()

    assert code(error) is grpc.StatusCode.UNAVAILABLE
    assert details(error) == "sandbox-svc went away during StopContainer; try again"
    assert stack.tiny.calls == ["StopContainer"]


def test_a_read_is_repeated_once(stack: Stack) -> None:
    """A read in flight when its backend dies is sent again and answered by the new one."""
    call = stack.runtime.ContainerStatus.future(api_pb2.ContainerStatusRequest(), timeout=30)
    assert stack.tiny.entered.acquire(timeout=60)
    stack.down("sandbox-svc")
    stack.tiny.release.set()
    stack.up("sandbox-svc")
    call.result()

    assert stack.tiny.calls == ["ContainerStatus", "ContainerStatus"]


def test_cancel_reaches_the_backend(stack: Stack) -> None:
    """A caller that gives up cancels the backend's call."""
    call = stack.runtime.StopContainer.future(api_pb2.StopContainerRequest())
    assert stack.tiny.entered.acquire(timeout=60)
    call.cancel()

    assert stack.tiny.cancelled.wait(30)


def test_streams_pass_and_are_cancelled(stack: Stack) -> None:
    """Messages of a server stream arrive one by one, and its end reaches the backend."""
    events = stack.runtime.GetContainerEvents(api_pb2.GetEventsRequest())
    first = next(iter(events))
    events.cancel()

    assert first.container_id == "c1"
    assert stack.tiny.cancelled.wait(30)


def test_a_stream_whose_backend_dies_ends_with_its_name(stack: Stack) -> None:
    """A stream that has already delivered is not opened again behind the caller's back."""
    events = stack.runtime.GetContainerEvents(api_pb2.GetEventsRequest())
    next(iter(events))
    stack.down("sandbox-svc")
    with pytest.raises(grpc.RpcError) as error:
        next(iter(events))

    assert code(error) is grpc.StatusCode.UNAVAILABLE
    assert details(error).startswith("sandbox-svc went away during GetContainerEvents")
    assert stack.tiny.calls == ["GetContainerEvents"]


def test_version_and_status_answer_beside_many_blocked_calls(stack: Stack) -> None:
    """Two hundred calls that hang in a backend take no thread from Version, Status and short calls."""
    blocked = [stack.runtime.StopContainer.future(api_pb2.StopContainerRequest()) for _ in range(200)]
    for _ in blocked:
        assert stack.tiny.entered.acquire(timeout=20)
    version = stack.runtime.Version(api_pb2.VersionRequest(), timeout=30)
    stack.runtime.Status(api_pb2.StatusRequest(), timeout=30)
    stack.runtime.ListContainers(api_pb2.ListContainersRequest(), timeout=30)
    stack.tiny.release.set()
    for call in blocked:
        call.result(timeout=60)

    assert version.runtime_name == "bulkhead"


def test_a_dead_backend_holds_up_neither_version_nor_the_other_service(stack: Stack) -> None:
    """While short calls to one backend wait for it, Version and the other backend's calls are answered."""
    stack.down("sandbox-svc")
    waiting = [stack.runtime.ListContainers.future(api_pb2.ListContainersRequest()) for _ in range(40)]
    stack.runtime.Version(api_pb2.VersionRequest(), timeout=30)
    stack.images.ImageStatus(api_pb2.ImageStatusRequest(), timeout=30)
    for call in waiting:
        assert call.exception(timeout=20).code() is grpc.StatusCode.UNAVAILABLE


def test_messages_up_to_the_kubelets_limit_pass(stack: Stack) -> None:
    """A request of nearly 16 MiB reaches the backend."""
    request = api_pb2.ListContainersRequest()
    request.filter.id = "x" * (16 * 1024 * 1024 - 64)
    stack.runtime.ListContainers(request, timeout=20)

    assert stack.tiny.calls == ["ListContainers"]


def test_a_second_frontend_is_refused(stack: Stack, config: Config) -> None:
    """A socket that is served is not taken over."""
    with pytest.raises(errors.Unavailable, match="another cri-frontend"):
        Frontend(config)


def test_status_merges_what_was_seen(stack: Stack) -> None:
    """Status carries sandbox-svc's network condition, its handlers, and a condition for each other service."""
    until(lambda: not stack.frontend.watch.findings.trouble)
    until(lambda: not stack.frontend.watch.findings.others["ImageServiceReady"])
    plain = stack.runtime.Status(api_pb2.StatusRequest(), timeout=30)
    verbose = stack.runtime.Status(api_pb2.StatusRequest(verbose=True), timeout=30)
    conditions = {condition.type: condition for condition in plain.status.conditions}

    assert conditions["RuntimeReady"].status
    assert (conditions["NetworkReady"].status, conditions["NetworkReady"].reason) == (False, "NoNetwork")
    assert conditions["ImageServiceReady"].status
    assert conditions["StreamingReady"].message == "stream-svc is not running"
    assert [handler.name for handler in plain.runtime_handlers] == [""]
    assert not plain.info
    assert set(verbose.info) == {"config", "services"}
