"""What the Kubernetes project's conformance suite asks of NRI from its next release on, said over the CRI."""

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.nri import Plugin, connected
from support.pods import TIMEOUT, Pods
from support.sandbox import Sandbox

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox-svc that plugins can connect to."""
    build("nriplugin")
    with Sandbox(number=98) as running:
        yield running


@pytest.fixture
def pods(sandbox: Sandbox) -> Iterator[Pods]:
    """A maker of pods, all gone at the end."""
    yield sandbox.pods()
    sandbox.remove_all()


@contextlib.contextmanager
def thinking(sandbox: Sandbox, name: str, event: str) -> Iterator[tuple[Plugin, Path]]:
    """Run a plugin that answers an event no sooner than a file is there; hand out both."""
    go = sandbox.directory / f"go-{time.monotonic_ns()}"
    with plugin_of(sandbox, name, "-hold", f"{event}={go}") as plugin:
        try:
            yield plugin, go
        finally:
            go.touch()


def plugin_of(sandbox: Sandbox, name: str, *arguments: str) -> contextlib.AbstractContextManager[Plugin]:
    """Run a plugin until the block ends."""
    log = sandbox.directory / f"{name}-{time.monotonic_ns()}.log"
    return connected(name, sandbox.directory / "nri/run/nri.sock", log, *arguments)


def listed(pods: Pods) -> list[str]:
    """The pods that are shown."""
    return [pod.id for pod in pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=TIMEOUT).items]


def containers(pods: Pods, pod: str) -> dict[str, int]:
    """The pod's containers and their states."""
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod))
    return {one.id: one.state for one in pods.runtime.ListContainers(request, timeout=TIMEOUT).containers}


def refused(call: Callable[..., Any], *arguments: Any) -> grpc.StatusCode:
    """The code that a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return caught.value.code()


def test_a_pod_is_not_there_before_plugins_have_let_it_pass(sandbox: Sandbox, pods: Pods) -> None:
    """While a plugin thinks about a pod it is not listed, not ready, and gets no container; then it is and does."""
    with (
        concurrent.futures.ThreadPoolExecutor() as threads,
        thinking(sandbox, "20-slow", "RunPodSandbox") as (plugin, go),
        plugin_of(sandbox, "10-first") as first,
    ):
        config = pods.config("exposed")
        running = threads.submit(pods.run, config)
        pod = plugin.heard("RunPodSandbox")["pod"]["id"]

        assert first.events()[-1] == "RunPodSandbox"
        assert pod not in listed(pods)
        with contextlib.suppress(grpc.RpcError):
            status = pods.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod), timeout=0.5)
            assert status.status.state != cri.SANDBOX_READY
        refused(pods.create, pod, config, "early", "sleep 300")
        assert not running.done()
        go.touch()
        assert running.result(TIMEOUT) == pod
        assert pod in listed(pods)
        pods.create(pod, config, "late", "sleep 300")


def test_a_container_is_not_there_before_plugins_have_let_it_pass(sandbox: Sandbox, pods: Pods) -> None:
    """While a plugin thinks about a container it is not listed and not created."""
    with (
        concurrent.futures.ThreadPoolExecutor() as threads,
        thinking(sandbox, "10-slow", "CreateContainer") as (plugin, go),
    ):
        config = pods.config("hidden")
        pod = pods.run(config)
        creating = threads.submit(pods.create, pod, config, "app", "sleep 300")
        container = plugin.heard("CreateContainer")["container"]["id"]

        assert containers(pods, pod) == {}
        with contextlib.suppress(grpc.RpcError):
            status = pods.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container), timeout=0.5)
            assert status.status.state != cri.CONTAINER_CREATED
        assert not creating.done()
        go.touch()
        assert creating.result(TIMEOUT) == container
        assert containers(pods, pod) == {container: cri.CONTAINER_CREATED}


def test_a_pods_stop_is_told_when_its_containers_are_stopped(sandbox: Sandbox, pods: Pods) -> None:
    """Containers have exited and the pod can be asked about while plugins hear of its stop; a second stop is silent."""
    with (
        concurrent.futures.ThreadPoolExecutor() as threads,
        thinking(sandbox, "10-slow", "StopPodSandbox") as (plugin, go),
    ):
        config = pods.config("stopping")
        pod = pods.run(config)
        container = pods.start(pod, config, "app", "sleep 300")
        stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
        stopping = threads.submit(pods.runtime.StopPodSandbox, stop, timeout=TIMEOUT)
        plugin.heard("StopPodSandbox")

        assert containers(pods, pod) == {container: cri.CONTAINER_EXITED}
        status = pods.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod), timeout=TIMEOUT)
        assert status.status.id == pod
        assert not stopping.done()
        go.touch()
        stopping.result(TIMEOUT)
        pods.runtime.StopPodSandbox(stop, timeout=TIMEOUT)
        created = plugin.events().count("CreateContainer")
        assert refused(pods.create, pod, config, "more", "sleep 300") != grpc.StatusCode.DEADLINE_EXCEEDED
        assert plugin.events().count("StopPodSandbox") == 1
        assert plugin.events().count("CreateContainer") == created


def test_what_is_refused_before_plugins_is_not_told_them(sandbox: Sandbox, pods: Pods) -> None:
    """Requests without metadata, about what does not exist, or for a pod that is there: plugins hear nothing."""
    config = pods.config("there")
    pod = pods.run(config)
    runtime = pods.runtime
    with plugin_of(sandbox, "10-watch") as plugin:
        heard = plugin.events()
        nameless = cri.ContainerConfig(image=cri.ImageSpec(image=pods.image))
        request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=nameless, sandbox_config=config)
        refused(runtime.CreateContainer, request)
        refused(pods.create, "unknown", config, "app", "sleep 300")
        refused(runtime.RunPodSandbox, cri.RunPodSandboxRequest(config=cri.PodSandboxConfig()))
        with contextlib.suppress(grpc.RpcError):  # refused, or the pod that is there
            assert pods.run(config) == pod
        refused(runtime.StartContainer, cri.StartContainerRequest(container_id="unknown"))
        with contextlib.suppress(grpc.RpcError):
            runtime.StopContainer(cri.StopContainerRequest(container_id="unknown"), timeout=TIMEOUT)
        runtime.RemoveContainer(cri.RemoveContainerRequest(container_id="unknown"), timeout=TIMEOUT)
        runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id="unknown"), timeout=TIMEOUT)
        runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id="unknown"), timeout=TIMEOUT)
        time.sleep(0.3)

        assert plugin.events() == heard


def test_a_refusal_may_be_tried_again_at_once(sandbox: Sandbox, pods: Pods) -> None:
    """After a plugin's no, nothing of the pod or the container is left, and the same request succeeds without it."""
    config = pods.config("again")
    with plugin_of(sandbox, "10-no", "-fail", "RunPodSandbox=induced"):
        refused(pods.run, config)
        assert listed(pods) == []
    pod = pods.run(config)
    with plugin_of(sandbox, "10-no", "-fail", "CreateContainer=induced") as plugin:
        refused(pods.create, pod, config, "app", "sleep 300")
        assert containers(pods, pod) == {}
        assert "StartContainer" not in plugin.events()
    pods.start(pod, config, "app", "sleep 300")


def test_a_pods_new_resources_need_every_plugins_yes(sandbox: Sandbox, pods: Pods) -> None:
    """A no is the answer, with its reason, and changes nothing; a yes is followed by one PostUpdatePodSandbox."""
    pod = pods.run(pods.config("resized"))
    wanted = cri.LinuxContainerResources(cpu_shares=512, cpu_quota=50000, cpu_period=100000)
    request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, overhead=wanted, resources=wanted)
    with plugin_of(sandbox, "10-no", "-fail", "UpdatePodSandbox=injected") as plugin:
        with pytest.raises(grpc.RpcError, match="injected"):
            pods.runtime.UpdatePodSandboxResources(request, timeout=TIMEOUT)
        assert plugin.events().count("PostUpdatePodSandbox") == 0
    with plugin_of(sandbox, "10-late-no", "-fail", "PostUpdatePodSandbox=injected") as plugin:
        pods.runtime.UpdatePodSandboxResources(request, timeout=TIMEOUT)
        told = plugin.heard("UpdatePodSandbox")
        expected = {"shares": {"value": "512"}, "quota": {"value": "50000"}, "period": {"value": "100000"}}
        assert told["resources"]["cpu"] == told["overhead"]["cpu"] == expected
        assert plugin.events().count("PostUpdatePodSandbox") == 1
    status = pods.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod), timeout=TIMEOUT).status
    assert status.state == cri.SANDBOX_READY
