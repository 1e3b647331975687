"""A malformed request gets INVALID_ARGUMENT naming the field, or works; no service dies of it."""

from collections.abc import Callable, Iterator

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.pods import Pods
from support.stack import SERVICES, Stack

pytestmark = pytest.mark.root

Request = Callable[[Pods, str, cri.PodSandboxConfig], object]


@pytest.fixture(scope="module")
def stack(registry: str) -> Iterator[Stack]:
    """One stack for the module."""
    with Stack(registry, number=93) as running:
        image = cri.ImageSpec(image=f"{registry}/busybox:1")
        running.image_service().PullImage(cri.PullImageRequest(image=image), timeout=60)
        yield running


def linux(**fields: object) -> cri.LinuxPodSandboxConfig:
    return cri.LinuxPodSandboxConfig(**fields)  # type: ignore[arg-type] # the test's own field names


BAD: dict[str, tuple[Request, str]] = {
    "no metadata": (lambda p, _pod, _c: p.run(cri.PodSandboxConfig()), "metadata"),
    "no name": (
        lambda p, _pod, _c: p.run(p.config("x", metadata=cri.PodSandboxMetadata(uid="u", namespace="n"))),
        "metadata.name",
    ),
    "unknown handler": (lambda p, _pod, _c: Pods(p.runtime, p.image, p.logs, "nosuch").run(p.config("h")), "nosuch"),
    "relative log directory": (lambda p, _pod, _c: p.run(p.config("l", log_directory="logs")), "log_directory"),
    "bad sysctl": (lambda p, _pod, _c: p.run(p.config("s", linux=linux(sysctls={"a b": "1"}))), "sysctl"),
    "sysctl that climbs": (
        lambda p, _pod, _c: p.run(p.config("s2", linux=linux(sysctls={"net/../../etc": "1"}))),
        "sysctl",
    ),
    "relative mount": (
        lambda p, pod, c: p.create(pod, c, "m", "true", mounts=[cri.Mount(container_path="x", host_path="/tmp")]),
        "mounts",
    ),
    "relative host path": (
        lambda p, pod, c: p.create(pod, c, "m", "true", mounts=[cri.Mount(container_path="/x", host_path="tmp")]),
        "host_path",
    ),
    "no container metadata": (
        lambda p, pod, c: p.create(pod, c, "m", "true", metadata=None),
        "metadata",
    ),
    "label of 1 MB": (
        lambda p, pod, c: p.create(pod, c, "m", "true", labels={"big": "x" * 1_000_000}),
        "labels['big']",
    ),
    "no image": (lambda p, pod, c: p.create(pod, c, "m", "true", image=None), "image"),
    "climbing log path": (lambda p, pod, c: p.create(pod, c, "m", "true", log_path="../../x"), "log_path"),
    "relative working directory": (
        lambda p, pod, c: p.create(pod, c, "m", "true", working_dir="var"),
        "working_dir",
    ),
    "unknown capability": (
        lambda p, pod, c: p.create(
            pod,
            c,
            "m",
            "true",
            linux=cri.LinuxContainerConfig(
                security_context=cri.LinuxContainerSecurityContext(
                    capabilities=cri.Capability(add_capabilities=["FLY"])
                )
            ),
        ),
        "FLY",
    ),
    "environment that no JSON can hold": (
        lambda p, pod, c: p.create(pod, c, "m", "true", envs=[cri.KeyValue(key="ODD", value=b"a\xff\xfeb")]),
        "envs[0].value",
    ),
    "negative grace": (
        lambda p, _pod, _c: p.runtime.StopContainer(cri.StopContainerRequest(container_id="x", timeout=-5), timeout=30),
        "timeout",
    ),
    "exec without a command": (
        lambda p, pod, c: p.runtime.ExecSync(
            cri.ExecSyncRequest(container_id=p.start(pod, c, "e", "sleep 99")), timeout=60
        ),
        "cmd",
    ),
    "port out of range": (
        lambda p, pod, _c: p.runtime.PortForward(cri.PortForwardRequest(pod_sandbox_id=pod, port=[70000]), timeout=30),
        "port",
    ),
}


@pytest.fixture(scope="module")
def pod(
    stack: Stack, registry: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Pods, str, cri.PodSandboxConfig]:
    """A pod for the requests that need one."""
    pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path_factory.mktemp("logs"))
    config = pods.config("malformed")
    return pods, pods.run(config), config


@pytest.mark.parametrize("name", sorted(BAD))
def test_named_in_the_error(name: str, stack: Stack, pod: tuple[Pods, str, cri.PodSandboxConfig]) -> None:
    """The request is refused with INVALID_ARGUMENT and the field stands in the message; every service lives on."""
    request, field = BAD[name]
    before = {service: stack.pid(service) for service in SERVICES}

    with pytest.raises(grpc.RpcError) as caught:
        request(*pod)

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert field in (caught.value.details() or "")
    assert {service: stack.pid(service) for service in SERVICES} == before


def test_unknown_ids_are_not_found(pod: tuple[Pods, str, cri.PodSandboxConfig]) -> None:
    """Status of what is not there is NOT_FOUND; stop and remove of it succeed, as the CRI demands."""
    pods, _, _ = pod

    with pytest.raises(grpc.RpcError) as caught:
        pods.status("0" * 64)

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    pods.stop("0" * 64)
    pods.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id="0" * 64), timeout=30)
    pods.remove("0" * 64)


def test_unimplemented_names_the_call(pod: tuple[Pods, str, cri.PodSandboxConfig]) -> None:
    """A call that is not built yet answers UNIMPLEMENTED with its name."""
    pods, _, _ = pod

    with pytest.raises(grpc.RpcError) as caught:
        pods.runtime.CheckpointPod(cri.CheckpointPodRequest(pod_sandbox_id="x", output_path="/tmp/x"), timeout=30)

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "CheckpointPod" in (caught.value.details() or "")
