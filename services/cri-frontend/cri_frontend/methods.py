"""What the frontend must know of each CRI method: who answers it, how long it may take, whether it may be repeated.

The methods themselves come from the compiled proto, so a new RPC is forwarded without a line here; what is listed
below is only where a method differs from the rule.
"""

from dataclasses import dataclass

from bulkhead.proto.runtime.v1 import api_pb2

DAY = 86400.0

#: Methods that hold a thread for seconds or more: they share the big pool.
LONG = frozenset(
    {
        "RunPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
        "CreateContainer",
        "StartContainer",
        "StopContainer",
        "RemoveContainer",
        "UpdateContainerResources",
        "UpdatePodSandboxResources",
        "ExecSync",
        "CheckpointContainer",
        "CheckpointPod",
        "RestorePod",
        "PullImage",
        "RemoveImage",
    }
)

#: Methods that change nothing: repeated once if the backend dies under them.
READS = frozenset(
    {
        "PodSandboxStatus",
        "ListPodSandbox",
        "ListContainers",
        "ContainerStatus",
        "ContainerStats",
        "ListContainerStats",
        "PodSandboxStats",
        "ListPodSandboxStats",
        "ListMetricDescriptors",
        "ListPodSandboxMetrics",
        "RuntimeConfig",
        "ListImages",
        "ImageStatus",
        "ImageFsInfo",
    }
)

#: Answered by the frontend itself.
LOCAL = frozenset({"Version", "Status"})

#: Seconds after which the frontend gives up on its own, whatever the caller allows. ExecSync, StopContainer and
#: PullImage carry limits of their own that a backend enforces, so theirs only guards against a backend that hangs.
SHORT_BOUND, LONG_BOUND, STREAM_BOUND = 120.0, 3600.0, 365 * DAY
_BOUNDS = {"ExecSync": DAY, "StopContainer": 7 * DAY, "PullImage": DAY}


@dataclass(frozen=True)
class Method:
    """One CRI method as the proxy sees it; bound is in seconds."""

    service: str
    name: str
    streams: bool
    long: bool
    repeatable: bool
    bound: float

    @property
    def path(self) -> str:
        """The gRPC path, `/runtime.v1.RuntimeService/ListContainers`."""
        return f"/{self.service}/{self.name}"


def methods(service: str) -> list[Method]:
    """Return the methods of `RuntimeService` or `ImageService` that are forwarded."""
    descriptor = api_pb2.DESCRIPTOR.services_by_name[service]
    return [
        Method(
            service=descriptor.full_name,
            name=method.name,
            streams=method.server_streaming,
            long=method.server_streaming or method.name in LONG,
            # Every server stream of the CRI lists or watches.
            repeatable=method.server_streaming or method.name in READS,
            bound=_bound(method.name, method.server_streaming),
        )
        for method in descriptor.methods
        if method.name not in LOCAL
    ]


def _bound(name: str, streams: bool) -> float:
    if streams:
        return STREAM_BOUND
    return _BOUNDS.get(name, LONG_BOUND if name in LONG else SHORT_BOUND)
