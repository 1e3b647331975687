"""Pods and containers over the CRI, for tests that speak gRPC rather than crictl."""

import time
from pathlib import Path
from typing import Any

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc

TIMEOUT = 120.0


class Pods:
    """Makes pods on one runtime."""

    def __init__(self, runtime: "cri_grpc.RuntimeServiceStub", image: str, logs: Path, handler: str = "") -> None:
        self.runtime, self.image, self.logs, self.handler = runtime, image, logs, handler

    def config(self, name: str, **fields: Any) -> cri.PodSandboxConfig:
        """Return a pod configuration; fields replace or add to it."""
        base: dict[str, Any] = {
            "metadata": cri.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default"),
            "log_directory": str(self.logs),
            "linux": cri.LinuxPodSandboxConfig(),
        }
        return cri.PodSandboxConfig(**(base | fields))

    def run(self, config: cri.PodSandboxConfig) -> str:
        """Run a pod and return its id."""
        request = cri.RunPodSandboxRequest(config=config, runtime_handler=self.handler)
        return str(self.runtime.RunPodSandbox(request, timeout=TIMEOUT).pod_sandbox_id)

    def create(self, pod: str, config: cri.PodSandboxConfig, name: str, command: str, **fields: Any) -> str:
        """Create a container that runs a shell command and return its id."""
        base: dict[str, Any] = {
            "metadata": cri.ContainerMetadata(name=name),
            "image": cri.ImageSpec(image=self.image),
            "command": ["sh", "-c", command],
            "log_path": f"{name}.log",
            "linux": cri.LinuxContainerConfig(),
        }
        container = cri.ContainerConfig(**(base | fields))
        request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
        return str(self.runtime.CreateContainer(request, timeout=TIMEOUT).container_id)

    def start(self, pod: str, config: cri.PodSandboxConfig, name: str, command: str, **fields: Any) -> str:
        """Create and start a container and return its id."""
        container = self.create(pod, config, name, command, **fields)
        self.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=TIMEOUT)
        return container

    def status(self, container: str) -> cri.ContainerStatus:
        """Return a container's status."""
        request = cri.ContainerStatusRequest(container_id=container)
        status: cri.ContainerStatus = self.runtime.ContainerStatus(request, timeout=TIMEOUT).status
        return status

    def wait_exited(self, container: str, seconds: float = 60) -> cri.ContainerStatus:
        """Wait until a container has exited and return its status."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.status(container)
            if status.state == cri.CONTAINER_EXITED:
                return status
            time.sleep(0.05)
        raise AssertionError(f"container {container} has not exited: {status}")

    def exec(self, container: str, *command: str, timeout: int = 30) -> cri.ExecSyncResponse:
        """Run a command in a container."""
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        answer: cri.ExecSyncResponse = self.runtime.ExecSync(request, timeout=TIMEOUT)
        return answer

    def stop(self, container: str, grace: int = 0) -> None:
        """Stop a container."""
        self.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=grace), timeout=TIMEOUT)

    def remove(self, pod: str) -> None:
        """Stop and remove a pod and all that is in it."""
        self.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=TIMEOUT)
        self.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=TIMEOUT)
