"""Status and RuntimeConfig: whether the node can run pods, and how."""

import json
from dataclasses import asdict
from typing import Any

import grpc

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.node import Node


def status(node: Node, request: cri.StatusRequest, context: grpc.ServicerContext) -> cri.StatusResponse:
    """Return both conditions of the CRI, what the handlers can do, and on request the effective configuration."""
    network = node.network("").status()
    conditions = [
        cri.RuntimeCondition(type="RuntimeReady", status=True),
        cri.RuntimeCondition(type="NetworkReady", status=network.ready, reason=network.reason, message=network.message),
    ]
    handlers = _handlers(node)
    return cri.StatusResponse(
        status=cri.RuntimeStatus(conditions=conditions),
        runtime_handlers=handlers,
        features=cri.RuntimeFeatures(
            supplemental_groups_policy=True,
            user_namespaces_host_network=any(handler.features.user_namespaces for handler in handlers),
        ),
        info={"config": json.dumps(_shown(node), default=str)} if request.verbose else None,
    )


def runtime_config(
    node: Node, request: cri.RuntimeConfigRequest, context: grpc.ServicerContext
) -> cri.RuntimeConfigResponse:
    """Return the cgroup driver of the default handler; the kubelet asks once, at its start."""
    systemd = node.runtimes.resolve("").systemd_cgroup
    driver = cri.SYSTEMD if systemd else cri.CGROUPFS
    return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=driver))


def _handlers(node: Node) -> list[cri.RuntimeHandler]:
    """Every handler, and "" for the default one: the kubelet looks pods without a RuntimeClass up by that name."""
    return [
        cri.RuntimeHandler(
            name=name,
            features=cri.RuntimeHandlerFeatures(
                recursive_read_only_mounts=node.runtimes.resolve(name).facts.recursive_read_only,
                user_namespaces=node.user_namespaces(node.runtimes.resolve(name)),
            ),
        )
        for name in ["", *node.runtimes.names()]
    ]


def _shown(node: Node) -> dict[str, Any]:
    """Return the runtime half of the configuration; registries, with their credentials, are image-svc's."""
    config = node.config
    return {
        **asdict(config.runtime),
        "containerdRootDir": str(config.root),
        "rootDir": str(config.root),
        "stateDir": str(config.state),
        "sandboxImage": config.images.sandbox_image,
    }
