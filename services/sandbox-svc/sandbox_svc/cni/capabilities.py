"""What a PodSandboxConfig has to say to the plugins: an Attachment with containerd's set of capabilities.

portMappings, bandwidth (from the kubernetes.io annotations), dns, cgroupPath and the pod's annotations; the names are
those of https://www.cni.dev/docs/conventions/.
"""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.cni.model import Attachment

POD_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"

_UNLIMITED_BURST = 2**32 - 1
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,2}))?")
_DECIMAL = {suffix: Decimal(1000) ** power for power, suffix in enumerate(("n", "u", "m", "", "k", *"MGTPE"), -3)}
_BINARY = {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}


def attachment(sandbox_id: str, netns: str, config: cri.PodSandboxConfig) -> Attachment:
    """Return what the CNI chain of a pod is given; InvalidArgument names a bandwidth annotation that is no amount."""
    return Attachment(
        sandbox_id=sandbox_id,
        netns=netns,
        pod_namespace=config.metadata.namespace,
        pod_name=config.metadata.name,
        pod_uid=config.metadata.uid,
        capabilities=_capabilities(config),
    )


def _capabilities(config: cri.PodSandboxConfig) -> dict[str, Any]:
    found: dict[str, Any] = {POD_ANNOTATIONS: dict(config.annotations)}
    if ports := _port_mappings(config):
        found["portMappings"] = ports
    if bandwidth := _bandwidth(config.annotations):
        found["bandwidth"] = bandwidth
    if config.HasField("dns_config"):
        dns = config.dns_config
        found["dns"] = {"servers": [*dns.servers], "searches": [*dns.searches], "options": [*dns.options]}
    if config.linux.cgroup_parent:
        found["cgroupPath"] = config.linux.cgroup_parent
    return found


def _port_mappings(config: cri.PodSandboxConfig) -> list[dict[str, Any]]:
    """Return the mappings that name a host port; without one there is nothing to map."""
    return [
        {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": cri.Protocol.Name(mapping.protocol).lower(),
            "hostIP": mapping.host_ip,
        }
        for mapping in config.port_mappings
        if mapping.host_port > 0
    ]


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    """Return the pod's limits in bits a second, as Kubernetes' bandwidth annotations give them."""
    found: dict[str, int] = {}
    for direction in ("ingress", "egress"):
        name = f"kubernetes.io/{direction}-bandwidth"
        if name in annotations:
            rate = quantity(annotations[name], name)
            if not 1000 <= rate <= 10**15:
                raise InvalidArgument(f"annotation {name}={annotations[name]}: must be between 1k and 1P bits a second")
            found |= {f"{direction}Rate": rate, f"{direction}Burst": _UNLIMITED_BURST}
    return found


def quantity(text: str, name: str) -> int:
    """Return a Kubernetes quantity ("10M", "1.5Gi", "2e6") as an integer, rounded up; InvalidArgument names it."""
    parts = _QUANTITY.fullmatch(text)
    if parts is None:
        raise InvalidArgument(f"{name}={text}: not a quantity such as 10M or 1Gi")
    number, suffix, exponent = parts.groups()
    factor = Decimal(10) ** int(exponent) if exponent else {**_DECIMAL, **_BINARY}[suffix or ""]
    return math.ceil(Decimal(number) * factor)
