"""What goes into the pod network and what comes out of it; all of it survives a trip through JSON."""

import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: The interface that carries the pod's addresses, and the prefix of further ones.
DEFAULT_INTERFACE = "eth0"
INTERFACE_PREFIX = "eth"


@dataclass(frozen=True)
class NetworkState:
    """Whether pods can get a network: what the CRI condition NetworkReady shows."""

    ready: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Attachment:
    """One pod that is to be, or was, attached to the networks of the node.

    netns is the path of its pinned namespace. capabilities holds runtime data by CNI capability name (portMappings,
    bandwidth, dns, …); a plugin is given those that its configuration declares.
    """

    sandbox_id: str
    netns: str
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> str:
        """CNI_ARGS, as Kubernetes runtimes have always passed it."""
        pairs = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.pod_namespace,
            "K8S_POD_NAME": self.pod_name,
            "K8S_POD_INFRA_CONTAINER_ID": self.sandbox_id,
            "K8S_POD_UID": self.pod_uid,
        }
        return ";".join(f"{name}={value}" for name, value in pairs.items())

    def to_json(self) -> str:
        """Return the attachment as one JSON object."""
        return json.dumps({**vars(self), "capabilities": dict(self.capabilities)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Attachment":
        """Return what to_json wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class NetworkResult:
    """One network of one pod: the configuration list used, and the result of its last plugin (None: none yet).

    skipped names the plugin types that were not run because they had nothing to do.
    """

    interface: str
    conf: Mapping[str, Any]
    result: Mapping[str, Any] | None = None
    skipped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The network's name."""
        return str(self.conf["name"])


@dataclass(frozen=True)
class AddResult:
    """Everything ADD did for a pod: enough for DEL when the configuration or the namespace is gone.

    Without results it is a plan: what ADD is about to do, to be written down before it is done.
    """

    networks: tuple[NetworkResult, ...] = ()
    #: The addresses of the default interface, the preferred one first.
    ips: tuple[str, ...] = ()

    @property
    def ip(self) -> str:
        """The pod's main address, "" while there is none."""
        return self.ips[0] if self.ips else ""

    @property
    def additional_ips(self) -> tuple[str, ...]:
        """The pod's other addresses."""
        return self.ips[1:]

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The names of the pod's interfaces, without the loopback."""
        return tuple(network.interface for network in self.networks if network.interface != "lo")

    def to_json(self) -> str:
        """Return the result as one JSON object."""
        networks = [{**vars(network), "skipped": list(network.skipped)} for network in self.networks]
        return json.dumps({"version": 1, "networks": networks, "ips": self.ips}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "AddResult":
        """Return what to_json wrote."""
        data = json.loads(text)
        networks = (NetworkResult(**{**one, "skipped": tuple(one["skipped"])}) for one in data["networks"])
        return cls(tuple(networks), tuple(data["ips"]))


def addresses(result: Mapping[str, Any], interface: str) -> list[str]:
    """Return the addresses that a CNI result gives an interface of the pod, in the plugins' order.

    An address that names no interface belongs to the one CNI was asked for. Results before 0.3.0 have `ip4` and
    `ip6` instead of a list.
    """
    known = result.get("interfaces") or []
    found = [ip["address"] for ip in result.get("ips") or [] if _belongs(ip, known, interface)]
    found += [result[key]["ip"] for key in ("ip4", "ip6") if result.get(key)]
    return [str(ipaddress.ip_interface(address).ip) for address in found]


def _belongs(ip: Mapping[str, Any], interfaces: Sequence[Mapping[str, Any]], name: str) -> bool:
    index = ip.get("interface")
    if index is None or not interfaces:
        return True
    return bool(0 <= index < len(interfaces) and interfaces[index].get("name") == name)


def prefer(ips: Sequence[str], preference: str) -> tuple[str, ...]:
    """Return the addresses with the main one first: the first of the preferred family, else the first of all.

    preference is containerd's ip_pref: "ipv4" (also for ""), "ipv6" or "cni" (the plugins' order).
    """
    family = {"ipv4": 4, "": 4, "ipv6": 6}.get(preference)
    main = next((ip for ip in ips if ipaddress.ip_address(ip).version == family), None)
    return tuple(ips) if main is None else (main, *(ip for ip in ips if ip is not main))
