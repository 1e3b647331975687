"""The CRI as a run needs it."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bulkhead import rpc
from bulkhead.errors import Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from bulkhead.sockets import is_live

_SERVICE = "runtime"
#: Seconds for a call; a pod waits for its network, a removal for the container's end.
_TIMEOUT = 240.0
#: Seconds between two looks at a container that runs, at first and later on.
_FIRST, _LAST = 0.01, 0.1


class Runtime:
    """A client of the CRI socket."""

    def __init__(self, socket: Path) -> None:
        if not is_live(str(socket)):
            raise Unavailable(f"nobody answers at {socket}: is the stack up, and is this its configuration (--config)?")
        channel = rpc.channel(str(socket))
        self._runtime = RuntimeServiceStub(channel)
        self._images = ImageServiceStub(channel)

    def has_image(self, name: str) -> bool:
        """Whether a container can be made of an image."""
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
        answer = rpc.call(self._images.ImageStatus, request, service=_SERVICE, timeout=_TIMEOUT)
        return bool(answer.HasField("image"))

    def pods(self, labels: Mapping[str, str]) -> Iterator[str]:
        """Yield the ids of pods that have these labels."""
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(label_selector=labels))
        for pod in rpc.call(self._runtime.ListPodSandbox, request, service=_SERVICE, timeout=_TIMEOUT).items:
            yield pod.id

    def run_pod(self, config: cri.PodSandboxConfig, handler: str) -> str:
        """Run a pod and return its id."""
        request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return str(rpc.call(self._runtime.RunPodSandbox, request, service=_SERVICE, timeout=_TIMEOUT).pod_sandbox_id)

    def create(self, pod: str, config: cri.ContainerConfig, sandbox: cri.PodSandboxConfig) -> str:
        """Create a container and return its id."""
        request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
        return str(rpc.call(self._runtime.CreateContainer, request, service=_SERVICE, timeout=_TIMEOUT).container_id)

    def start(self, container: str) -> None:
        """Start a container."""
        request = cri.StartContainerRequest(container_id=container)
        rpc.call(self._runtime.StartContainer, request, service=_SERVICE, timeout=_TIMEOUT)

    def wait(self, container: str, meanwhile: Callable[[], bool]) -> int:
        """Return a container's exit status once it has ended and `meanwhile`, called often, has no more to do."""
        pause = _FIRST
        while True:
            status = self.status(container)
            ended = status.state == cri.CONTAINER_EXITED
            busy = meanwhile()
            if ended and not busy:
                return int(status.exit_code)
            pause = _FIRST if busy else min(pause * 1.5, _LAST)
            time.sleep(pause)

    def status(self, container: str) -> cri.ContainerStatus:
        """Return how a container is."""
        request = cri.ContainerStatusRequest(container_id=container)
        found: cri.ContainerStatus = rpc.call(
            self._runtime.ContainerStatus, request, service=_SERVICE, timeout=_TIMEOUT
        ).status
        return found

    def attach_url(self, container: str, *, tty: bool, output: bool) -> str:
        """Return where a container's streams can be had, once."""
        request = cri.AttachRequest(
            container_id=container, stdin=True, stdout=output, stderr=output and not tty, tty=tty
        )
        return str(rpc.call(self._runtime.Attach, request, service=_SERVICE, timeout=_TIMEOUT).url)

    def stop(self, container: str, seconds: int) -> None:
        """Stop a container, and kill it after some seconds."""
        request = cri.StopContainerRequest(container_id=container, timeout=seconds)
        rpc.call(self._runtime.StopContainer, request, service=_SERVICE, timeout=_TIMEOUT + seconds)

    def stop_pod(self, pod: str) -> None:
        """Stop a pod and what is in it."""
        request = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
        rpc.call(self._runtime.StopPodSandbox, request, service=_SERVICE, timeout=_TIMEOUT)

    def remove_pod(self, pod: str) -> None:
        """Remove a pod and what is in it."""
        request = cri.RemovePodSandboxRequest(pod_sandbox_id=pod)
        rpc.call(self._runtime.RemovePodSandbox, request, service=_SERVICE, timeout=_TIMEOUT)
