"""Sysctls of a pod: those asked for, and the two that let containers do without capabilities."""

import re

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import Json, SandboxInput

PORT_START = "net.ipv4.ip_unprivileged_port_start"
PING_GROUPS = "net.ipv4.ping_group_range"

_NAME = re.compile(r"[a-z0-9](?:[-_a-z0-9.]*[a-z0-9])?(?:/[a-z0-9](?:[-_a-z0-9.]*[a-z0-9])?)*", re.IGNORECASE)
#: Sysctls of the IPC namespace (ipc_namespaces(7)).
_IPC = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def apply(spec: Json, request: SandboxInput) -> None:
    """Set the pod's sysctls, refusing those that would change the node."""
    options = request.config.linux.security_context.namespace_options
    sysctls = dict(request.config.linux.sysctls)
    for name in sysctls:
        _check(name, options)
    if options.network != cri.NODE:
        if request.runtime.enable_unprivileged_ports:
            sysctls.setdefault(PORT_START, "0")
        if request.runtime.enable_unprivileged_icmp and _groups_are_ours(request):
            sysctls.setdefault(PING_GROUPS, "0 2147483647")
    if sysctls:
        spec["linux"]["sysctl"] = {**spec["linux"].get("sysctl", {}), **sysctls}


def _groups_are_ours(request: SandboxInput) -> bool:
    """Tell whether group 2147483647 exists in the pod's user namespace: the kernel refuses unmapped ones."""
    options = request.config.linux.security_context.namespace_options
    in_user_namespace = options.HasField("userns_options") and options.userns_options.mode == cri.POD
    return not request.facts.in_user_namespace and not in_user_namespace


def _check(name: str, options: cri.NamespaceOption) -> None:
    """Refuse a malformed name, and a sysctl of no namespace of the pod's own (runc and crun would, later)."""
    field = f"linux.sysctls[{name!r}]"
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidArgument(f"{field}: not the name of a sysctl")
    plain = name.replace("/", ".")
    if plain.startswith("net."):
        if options.network == cri.NODE:
            raise InvalidArgument(f"{field}: the pod shares the node's network, so this would change the node")
    elif plain in _IPC or plain.startswith("fs.mqueue."):
        if options.ipc == cri.NODE:
            raise InvalidArgument(f"{field}: the pod shares the node's IPC, so this would change the node")
    elif plain != "kernel.domainname":
        raise InvalidArgument(f"{field}: it belongs to no namespace, so it would change the node")
