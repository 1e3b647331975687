"""The CRI's RuntimeService: each RPC's name and the function that answers it.

The handlers are registered without the generated servicer, because lists answer in bytes that are serialised already.
"""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message

from bulkhead import rpc
from bulkhead.errors import Unimplemented
from bulkhead.proto.runtime.v1 import api_pb2
from sandbox_svc.node import Node
from sandbox_svc.rpc import events, lists, pod_metrics, stats, statuses, update
from sandbox_svc.rpc import exec as execs
from sandbox_svc.rpc import status as node_status
from sandbox_svc.rpc.checkpoint_container import checkpoint_container
from sandbox_svc.rpc.create_container import create_container
from sandbox_svc.rpc.remove_container import remove_container
from sandbox_svc.rpc.remove_pod_sandbox import remove_pod_sandbox
from sandbox_svc.rpc.run_pod_sandbox import run_pod_sandbox
from sandbox_svc.rpc.start_container import start_container
from sandbox_svc.rpc.stop_container import stop_container
from sandbox_svc.rpc.stop_pod_sandbox import stop_pod_sandbox

SERVICE = "runtime.v1.RuntimeService"

#: RPCs that answer from memory or with one short call.
SHORT: dict[str, Callable[..., Any]] = {
    "Status": node_status.status,
    "RuntimeConfig": node_status.runtime_config,
    "ListPodSandbox": lists.list_pod_sandbox,
    "ListContainers": lists.list_containers,
    "StreamPodSandboxes": lists.stream_pod_sandboxes,
    "StreamContainers": lists.stream_containers,
    "ContainerStats": stats.container_stats,
    "ListContainerStats": stats.list_container_stats,
    "PodSandboxStats": stats.pod_sandbox_stats,
    "ListPodSandboxStats": stats.list_pod_sandbox_stats,
    "StreamContainerStats": stats.stream_container_stats,
    "StreamPodSandboxStats": stats.stream_pod_sandbox_stats,
    "ListMetricDescriptors": pod_metrics.list_metric_descriptors,
    "UpdateRuntimeConfig": update.update_runtime_config,
}

#: RPCs that may take seconds: they wait for plugins, runtimes, a restarting service, a grace period, another
#: operation of the pod or its settling after our start, or read much.
LONG: dict[str, Callable[..., Any]] = {
    "RunPodSandbox": run_pod_sandbox,
    "StopPodSandbox": stop_pod_sandbox,
    "RemovePodSandbox": remove_pod_sandbox,
    "CreateContainer": create_container,
    "StartContainer": start_container,
    "StopContainer": stop_container,
    "RemoveContainer": remove_container,
    "CheckpointContainer": checkpoint_container,
    "UpdateContainerResources": update.update_container_resources,
    "UpdatePodSandboxResources": update.update_pod_sandbox_resources,
    "PodSandboxStatus": statuses.pod_sandbox_status,
    "ContainerStatus": statuses.container_status,
    "ReopenContainerLog": execs.reopen_container_log,
    "ExecSync": execs.exec_sync,
    "Exec": execs.exec_stream,
    "Attach": execs.attach,
    "PortForward": execs.port_forward,
    "ListPodSandboxMetrics": pod_metrics.list_pod_sandbox_metrics,
    "StreamPodSandboxMetrics": pod_metrics.stream_pod_sandbox_metrics,
    "GetContainerEvents": events.get_container_events,
}


def register(node: Node) -> Callable[[grpc.Server], None]:
    """Return what adds the service to a server."""
    methods = api_pb2.DESCRIPTOR.services_by_name["RuntimeService"].methods
    handlers = {method.name: _handler(node, method) for method in methods if method.name != "Version"}
    generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
    return lambda server: server.add_generic_rpc_handlers((generic,))


def unbuilt() -> list[str]:
    """Return the RPCs that answer UNIMPLEMENTED."""
    methods = api_pb2.DESCRIPTOR.services_by_name["RuntimeService"].methods
    return [m.name for m in methods if m.name not in SHORT and m.name not in LONG and m.name != "Version"]


def _handler(node: Node, method: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    answer = SHORT.get(method.name) or LONG.get(method.name)
    request_type = message_factory.GetMessageClass(method.input_type)
    behaviour: Callable[..., Any]
    if answer is None:
        behaviour = _unimplemented_stream(method.name) if method.server_streaming else _unimplemented(method.name)
    else:
        behaviour = _bound(node, answer)
        if method.name in LONG:
            behaviour = rpc.long_call(behaviour)
    make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(behaviour, request_deserializer=request_type.FromString, response_serializer=_serialise)


def _bound(node: Node, answer: Callable[..., Any]) -> Callable[..., Any]:
    return lambda request, context: answer(node, request, context)


def _unimplemented(name: str) -> Callable[..., Any]:
    def refuse(request: Message, context: grpc.ServicerContext) -> Message:
        raise Unimplemented(f"{name} is not implemented")

    return refuse


def _unimplemented_stream(name: str) -> Callable[..., Any]:
    def refuse(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
        raise Unimplemented(f"{name} is not implemented")
        yield  # makes it a generator, as a streaming method is

    return refuse


def _serialise(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
