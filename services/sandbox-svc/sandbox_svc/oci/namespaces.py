"""Which namespaces a container gets: its own, its pod's or the node's."""

from collections.abc import Iterable

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import ContainerInput, Json, SandboxInput

POD, CONTAINER, NODE, TARGET = cri.POD, cri.CONTAINER, cri.NODE, cri.TARGET


def put(spec: Json, type_: str, path: str = "") -> None:
    """Add a namespace, or replace the one of that type; without a path it is a new one."""
    entry = {"type": type_, "path": path} if path else {"type": type_}
    namespaces = spec["linux"]["namespaces"]
    for index, present in enumerate(namespaces):
        if present["type"] == type_:
            namespaces[index] = entry
            return
    namespaces.append(entry)


def drop(spec: Json, type_: str) -> None:
    """Take a namespace out, which leaves the container in the node's."""
    linux = spec["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != type_]


def apply_to_sandbox(spec: Json, request: SandboxInput) -> None:
    """Give the pause container the pod's namespaces, or the node's where the pod shares them."""
    options = request.config.linux.security_context.namespace_options
    if options.network == NODE:
        drop(spec, "network")
        drop(spec, "uts")
    else:
        put(spec, "network", request.netns_path)
    if options.pid == NODE:
        drop(spec, "pid")
    if options.ipc == NODE:
        drop(spec, "ipc")
    if user_namespace(options, "linux.security_context.namespace_options"):
        _map_ids(spec, options.userns_options)
        put(spec, "user", request.userns_path if options.network != NODE else "")


def apply_to_container(spec: Json, request: ContainerInput) -> None:
    """Join the pause process's namespaces; PID ones as the mode says (POD, CONTAINER, NODE, TARGET).

    Mode NODE needs no case of its own: the pause process is in the node's namespace then, and joining that is the same.
    """
    options = request.config.linux.security_context.namespace_options
    pid = request.sandbox_pid
    for type_, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts")):
        put(spec, type_, f"/proc/{pid}/ns/{name}")
    if options.pid != CONTAINER:
        put(spec, "pid", f"/proc/{_pid_target(request)}/ns/pid")
    _check_same_user_namespace(request)
    if user_namespace(options, "linux.security_context.namespace_options"):
        put(spec, "user", f"/proc/{pid}/ns/user")
        _map_ids(spec, options.userns_options)


def apply_cgroup_namespace(spec: Json, request: ContainerInput) -> None:
    """Hide the cgroup tree above the container on cgroup v2; v1 and privileged containers see the node's.

    That is the Kubernetes rule (KEP-2254): on v1 the namespace would hide what containers were used to read there.
    """
    if request.facts.cgroup_mode == "v2" and not request.config.linux.security_context.privileged:
        put(spec, "cgroup")


def user_namespace(options: cri.NamespaceOption, where: str) -> bool:
    """Tell whether a user namespace is asked for, after checking its mappings (one line each, not empty)."""
    if not options.HasField("userns_options"):
        return False
    mode = options.userns_options.mode
    uids, gids = options.userns_options.uids, options.userns_options.gids
    for name, mappings in (("uids", uids), ("gids", gids)):
        if len(mappings) > 1:
            raise InvalidArgument(f"{where}.userns_options.{name}: want one mapping, got {len(mappings)}")
        if mappings and mappings[0].length < 1:
            raise InvalidArgument(f"{where}.userns_options.{name}: a mapping of length 0")
        if mappings and mappings[0].container_id != 0:
            raise InvalidArgument(f"{where}.userns_options.{name}: container_id 0 is not mapped")
    if mode == NODE:
        if uids or gids:
            raise InvalidArgument(f"{where}.userns_options: mode NODE takes no mappings")
        return False
    if mode != POD:
        raise InvalidArgument(f"{where}.userns_options.mode: want POD or NODE, got {cri.NamespaceMode.Name(mode)}")
    if not uids or not gids:
        raise InvalidArgument(f"{where}.userns_options: mode POD needs uids and gids")
    return True


def on_node_network_in_user_namespace(options: cri.NamespaceOption) -> bool:
    """Tell whether sysfs cannot be mounted: it wants the network namespace to belong to our user namespace."""
    return bool(options.network == NODE and options.HasField("userns_options") and options.userns_options.mode == POD)


def _pid_target(request: ContainerInput) -> int:
    options = request.config.linux.security_context.namespace_options
    if options.pid != TARGET:
        return request.sandbox_pid
    if not request.target_pid:
        raise InvalidArgument(
            "linux.security_context.namespace_options.target_id: "
            f"container {options.target_id!r} does not run in this pod"
        )
    return request.target_pid


def _check_same_user_namespace(request: ContainerInput) -> None:
    sandbox = request.sandbox_config.linux.security_context.namespace_options
    container = request.config.linux.security_context.namespace_options
    where = "linux.security_context.namespace_options"
    same_use = user_namespace(sandbox, f"sandbox_config.{where}") == user_namespace(container, where)
    if not same_use or (
        list(sandbox.userns_options.uids) != list(container.userns_options.uids)
        or list(sandbox.userns_options.gids) != list(container.userns_options.gids)
    ):
        raise InvalidArgument(f"{where}.userns_options: differ from those of the pod")


def _map_ids(spec: Json, options: cri.UserNamespace) -> None:
    spec["linux"]["uidMappings"] = id_mappings(options.uids)
    spec["linux"]["gidMappings"] = id_mappings(options.gids)


def id_mappings(mappings: Iterable[cri.IDMapping]) -> list[Json]:
    """Return CRI id mappings as the runtime spec writes them."""
    return [
        {"containerID": mapping.container_id, "hostID": mapping.host_id, "size": mapping.length} for mapping in mappings
    ]
