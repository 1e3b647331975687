"""PodSandboxStatus and ContainerStatus, with the verbose info that crictl and node e2e read."""

import json
import time
from typing import Any

import grpc

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle
from sandbox_svc.checkpoint import go_json
from sandbox_svc.node import Node
from sandbox_svc.store import messages
from sandbox_svc.store.entities import Container, Pod

#: Seconds a status waits for a pod that is still being settled after our start: lists do not wait, they say UNKNOWN.
SETTLE = 5.0


def pod_sandbox_status(
    node: Node, request: cri.PodSandboxStatusRequest, context: grpc.ServicerContext
) -> cri.PodSandboxStatusResponse:
    """Return a pod's status; NotFound if there is none by that id."""
    pod = node.model.pod(request.pod_sandbox_id)
    pod.settled.wait(SETTLE)
    return cri.PodSandboxStatusResponse(
        status=messages.pod_status(pod.record, pod.state),
        info=_pod_info(node, pod) if request.verbose else None,
        containers_statuses=[
            messages.container_status(c.record, c.state) for c in node.model.containers() if c.pod is pod
        ],
        timestamp=time.time_ns(),
    )


def container_status(
    node: Node, request: cri.ContainerStatusRequest, context: grpc.ServicerContext
) -> cri.ContainerStatusResponse:
    """Return a container's status; NotFound if there is none by that id."""
    container = node.model.container(request.container_id)
    container.pod.settled.wait(SETTLE)
    return cri.ContainerStatusResponse(
        status=messages.container_status(container.record, container.state),
        info=_container_info(node, container) if request.verbose else None,
    )


def _pod_info(node: Node, pod: Pod) -> dict[str, str]:
    record = pod.record
    networks = [entry.data for entry in node.database.entries(pod.id) if entry.kind == "cni"]
    return _info(
        {
            "pid": record.process.pid if record.process and not record.finished_at else 0,
            "processStatus": "deleted" if record.finished_at else "running",
            "netNamespaceClosed": not record.netns or bool(record.finished_at),
            "image": record.image_name,
            "snapshotKey": record.id,
            "snapshotter": _snapshotter(node, record.handler),
            "runtimeHandler": record.requested_handler,
            "runtimeType": node.runtimes.resolve(record.handler).handler.runtime_type,
            "cniResult": json.loads(networks[0]["result"]) if networks else None,
            **_runtime(node, record.handler, record.id),
            "overhead": _resources(record.config, "overhead"),
            "resources": _resources(record.config, "resources"),
            "config": go_json.plain(record.config),
        }
    )


def _resources(config: cri.PodSandboxConfig, field: str) -> dict[str, Any] | None:
    """Return a pod's overhead or sum of resources, as of the last UpdatePodSandboxResources."""
    found = go_json.plain(config.linux).get(field)
    return None if found is None else {"linux": found}


def _container_info(node: Node, container: Container) -> dict[str, str]:
    record = container.record
    handler = container.pod.record.handler
    return _info(
        {
            "sandboxID": record.sandbox_id,
            "pid": record.process.pid if record.process and not record.finished_at else 0,
            "removing": False,
            "snapshotKey": record.id,
            "snapshotter": _snapshotter(node, handler),
            "runtimeType": node.runtimes.resolve(handler).handler.runtime_type,
            **_runtime(node, handler, record.id),
            "config": go_json.plain(record.config),
        }
    )


def _runtime(node: Node, handler: str, ident: str) -> dict[str, Any]:
    resolved = node.runtimes.resolve(handler)
    try:
        spec = bundle.read(node.bundle(ident))
    except OSError:
        spec = {}  # the bundle is on a tmpfs and gone after a reboot
    return {"runtimeOptions": {**resolved.handler.options, "BinaryName": resolved.binary}, "runtimeSpec": spec}


def _snapshotter(node: Node, handler: str) -> str:
    return node.runtimes.resolve(handler).handler.snapshotter or node.config.images.snapshotter


def _info(value: dict[str, Any]) -> dict[str, str]:
    return {"info": json.dumps(value)}
