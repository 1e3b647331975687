"""What is mounted in a container: kernel file systems, the pod's files, the request's mounts, the image's volumes."""

import posixpath

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci import namespaces, volumes
from sandbox_svc.oci.model import ContainerInput, Json, SandboxInput

SHM = "/dev/shm"  # noqa: S108 (the path in the container and on the node)
RESOLV_CONF = "/etc/resolv.conf"
_SYS = "/sys"
_CGROUP = "/sys/fs/cgroup"

#: Flags that a remount inside a user namespace must repeat, or the kernel refuses it; harmless elsewhere.
_LOCKED = ("nosuid", "nodev", "noexec")


def apply_to_sandbox(spec: Json, request: SandboxInput) -> None:
    """Give the pause container the pod's /dev/shm and, for runtimes that boot a VM around it, its resolv.conf."""
    context = request.config.linux.security_context
    drop(spec, SHM)
    shm = SHM if context.namespace_options.ipc == cri.NODE else request.files.shm
    for source, destination in ((shm, SHM), (request.files.resolv_conf, RESOLV_CONF)):
        if source:
            spec["mounts"].append(_bind(source, destination, ["rbind", "ro", *_LOCKED]))
    if context.privileged:
        writable(spec, "sysfs")
    if namespaces.on_node_network_in_user_namespace(context.namespace_options):
        bind_sys(spec)


def apply_to_container(spec: Json, request: ContainerInput) -> None:
    """Mount what the request says over the defaults, shallow paths before deep ones, so that none hides another.

    A default mount yields to a mount of the request at the same place, and everything below /dev to one at /dev.
    """
    spec["mounts"].append(_cgroup(request))
    _check_mappings(request)
    wanted = [*request.config.mounts, *_pod_files(request), *_image_volumes(request)]
    fields = [f"mounts[{index}]" for index in range(len(request.config.mounts))]
    fields += ["the pod's files"] * (len(wanted) - len(fields))
    taken = {_clean(mount.container_path) for mount in wanted}
    spec["mounts"] = [mount for mount in spec["mounts"] if not _replaced(mount["destination"], taken)]
    order = sorted(range(len(wanted)), key=lambda index: _clean(wanted[index].container_path).count("/"))
    for index in order:
        spec["mounts"].append(_mount(spec, request, index, wanted[index], fields[index]))
    if namespaces.on_node_network_in_user_namespace(request.sandbox_config.linux.security_context.namespace_options):
        bind_sys(spec)


def relabelled(request: ContainerInput, spec: Json) -> list[str]:
    """Return what of the node gets a container's SELinux mount label; images that are mounted are read-only."""
    if not spec["linux"].get("mountLabel"):
        return []
    wanted = [*request.config.mounts, *_pod_files(request), *_image_volumes(request)]
    paths = [mount.host_path for mount in wanted if mount.selinux_relabel and not mount.HasField("image")]
    return [request.facts.host.real_path(path) for path in paths]


def drop(spec: Json, destination: str) -> None:
    """Take out what is mounted at a place."""
    spec["mounts"] = [mount for mount in spec["mounts"] if _clean(mount["destination"]) != destination]


def writable(spec: Json, type_: str) -> None:
    """Make the mounts of that file system type writable (privileged containers)."""
    for mount in spec["mounts"]:
        if mount.get("type") == type_:
            mount["options"] = ["rw" if option == "ro" else option for option in mount["options"]]


def bind_sys(spec: Json) -> None:
    """Put the node's /sys, read-only, in the place of a sysfs mount that the kernel would refuse (EPERM).

    It is private, as crun binds what the node has, shared as it is: what crun then hides in it, /sys/firmware, would be
    hidden on the node, too, and the kernel refuses every later user namespace a sysfs that shows more than the node's.
    """
    for index, mount in enumerate(spec["mounts"]):
        if _clean(mount["destination"]) == _SYS and mount.get("type") == "sysfs":
            spec["mounts"][index] = _bind(_SYS, _SYS, ["rbind", "rprivate", "rro", *_LOCKED])


def _cgroup(request: ContainerInput) -> Json:
    """Return the mount of the cgroup tree, read-only unless the handler has cgroup_writable.

    Without a cgroup namespace it is the node's own cgroup2 superblock, whose options a mount would change for everyone:
    those that the node has are repeated.
    """
    options = ["nosuid", "noexec", "nodev", "relatime", "rw" if request.handler.cgroup_writable else "ro"]
    if request.facts.cgroup_mode != "v2" or request.config.linux.security_context.privileged:
        options += request.facts.host.cgroup_options()
    return {"destination": _CGROUP, "type": "cgroup", "source": "cgroup", "options": options}


def _pod_files(request: ContainerInput) -> list[cri.Mount]:
    """Return the mounts of the pod's hostname, hosts, resolv.conf and shm that the request does not make itself."""
    context = request.config.linux.security_context
    taken = {_clean(mount.container_path) for mount in request.config.mounts}
    options = context.namespace_options.userns_options
    found = [
        cri.Mount(
            container_path=destination,
            host_path=source,
            readonly=context.readonly_rootfs,
            selinux_relabel=True,
            uidMappings=options.uids,
            gidMappings=options.gids,
        )
        for destination, source in (
            ("/etc/hostname", request.files.hostname),
            ("/etc/hosts", request.files.hosts),
            (RESOLV_CONF, request.files.resolv_conf),
        )
        if source and destination not in taken
    ]
    shm = SHM if context.namespace_options.ipc == cri.NODE else request.files.shm
    if shm and SHM not in taken:
        found.append(cri.Mount(container_path=SHM, host_path=shm, selinux_relabel=shm != SHM))
    return found


def _image_volumes(request: ContainerInput) -> list[cri.Mount]:
    options = request.config.linux.security_context.namespace_options.userns_options
    return [
        cri.Mount(
            container_path=volume.container_path,
            host_path=volume.host_path,
            selinux_relabel=True,
            uidMappings=options.uids,
            gidMappings=options.gids,
        )
        for volume in volumes.image_volumes(request)
    ]


def _mount(spec: Json, request: ContainerInput, index: int, mount: cri.Mount, field: str) -> Json:
    source = volumes.source(request, index, mount, field)
    if not mount.container_path.startswith("/"):
        raise InvalidArgument(f"{field}.container_path: want an absolute path, got {mount.container_path!r}")
    options = ["rbind", _propagation(spec, request, mount, source, field), _access(request, mount, field)]
    entry = _bind(source, mount.container_path, options)
    if not mount.HasField("image"):
        for member, mappings in (("uidMappings", mount.uidMappings), ("gidMappings", mount.gidMappings)):
            if mappings:
                entry[member] = namespaces.id_mappings(mappings)
    return entry


def _check_mappings(request: ContainerInput) -> None:
    """Refuse mounts with owners of their own where the runtime would show the node's."""
    if request.runtime_facts.id_mapped_mounts:
        return
    for index, mount in enumerate(request.config.mounts):
        if mount.uidMappings or mount.gidMappings:
            member = "uidMappings" if mount.uidMappings else "gidMappings"
            raise InvalidArgument(f"mounts[{index}].{member}: the runtime handler cannot map the owners of a mount")


def _propagation(spec: Json, request: ContainerInput, mount: cri.Mount, source: str, field: str) -> str:
    """Return the propagation option, after checking that the source's own mount can propagate.

    The rootfs must propagate as far as its mounts shall: rslave or rshared replaces the runtimes' rprivate.
    """
    linux = spec["linux"]
    if mount.propagation == cri.PROPAGATION_PRIVATE:
        return "rprivate"
    actual = request.facts.host.propagation(source)
    if mount.propagation == cri.PROPAGATION_BIDIRECTIONAL:
        if actual != "shared":
            raise InvalidArgument(
                f"{field}.propagation: {source} is on a {actual} mount, Bidirectional needs a shared one"
            )
        linux["rootfsPropagation"] = "rshared"
        return "rshared"
    if mount.propagation == cri.PROPAGATION_HOST_TO_CONTAINER:
        if actual not in ("shared", "slave"):
            raise InvalidArgument(
                f"{field}.propagation: {source} is on a {actual} mount, HostToContainer needs a shared or slave one"
            )
        if linux.get("rootfsPropagation") != "rshared":
            linux["rootfsPropagation"] = "rslave"
        return "rslave"
    raise InvalidArgument(f"{field}.propagation: unknown value {mount.propagation}")


def _access(request: ContainerInput, mount: cri.Mount, field: str) -> str:
    """Return rw, ro, or rro (read-only with everything below, kernel 5.12)."""
    can = request.runtime_facts.recursive_read_only
    if not mount.readonly:
        if mount.recursive_read_only:
            raise InvalidArgument(f"{field}.recursive_read_only: the mount is not readonly")
        return "rw"
    if mount.recursive_read_only:
        if not can:
            # The word is the one that the kubelet looks for (cri-api, pkg/errors).
            raise InvalidArgument(f"RROUnsupported: {field}.recursive_read_only: the runtime handler cannot do it")
        if mount.propagation != cri.PROPAGATION_PRIVATE:
            raise InvalidArgument(f"{field}.recursive_read_only: needs propagation PRIVATE")
        return "rro"
    wish = request.handler.treat_ro_mounts_as_rro.lower()
    if wish == "enabled" and not can:
        raise InvalidArgument(f"{field}.readonly: treat_ro_mounts_as_rro is on, and the runtime handler cannot do it")
    private = mount.propagation == cri.PROPAGATION_PRIVATE
    return "rro" if private and (wish == "enabled" or (wish == "ifpossible" and can)) else "ro"


def _replaced(destination: str, taken: set[str]) -> bool:
    path = _clean(destination)
    return path in taken or ("/dev" in taken and path.startswith("/dev/"))


def _bind(source: str, destination: str, options: list[str]) -> Json:
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def _clean(path: str) -> str:
    """Return path as Go's filepath.Clean does for absolute paths: one slash, no dots, no trailing slash."""
    return "/" + posixpath.normpath(path).lstrip("/") if path.startswith("/") else posixpath.normpath(path)
