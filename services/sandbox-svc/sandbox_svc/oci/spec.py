"""The entries: the spec of a pause container, of a container, and of a process exec'd in one."""

from sandbox_svc.oci import (
    annotations,
    apparmor,
    base,
    bpf,
    capabilities,
    devices,
    hardware,
    mounts,
    namespaces,
    privileged,
    process,
    resources,
    seccomp,
    selinux,
    sysctls,
    users,
)
from sandbox_svc.oci.model import ContainerInput, Json, SandboxInput
from sandbox_svc.oci.mounts import relabelled
from sandbox_svc.oci.process import exec_process
from sandbox_svc.oci.volumes import image_volumes, needed_directories

__all__ = [
    "container_spec",
    "exec_process",
    "hand_over_filter",
    "image_volumes",
    "needed_directories",
    "relabelled",
    "sandbox_spec",
]


def sandbox_spec(request: SandboxInput) -> Json:
    """Return the OCI runtime spec (config.json) of a pod's pause container.

    Raises InvalidArgument, naming the field of PodSandboxConfig, for what can never work.
    """
    linux = request.config.linux
    context = linux.security_context
    spec = base.default_spec(request.id, request.facts, request.runtime_facts)
    spec["root"]["readonly"] = True
    if request.config.hostname:
        spec["hostname"] = request.config.hostname
    process.apply_to_sandbox(spec, request)
    resources.apply_cgroup_parent(
        spec, linux.cgroup_parent, request.id, request.handler, disabled=request.runtime.disable_cgroup
    )
    namespaces.apply_to_sandbox(spec, request)
    mounts.apply_to_sandbox(spec, request)
    process_label, mount_label = selinux.labels(context.selinux_options, "", request.id, request.runtime, request.facts)
    kind = request.handler.runtime_type
    selinux.apply(spec, process_label, mount_label, privileged=context.privileged, runtime_type=kind)
    sysctls.apply(spec, request)
    resources.apply_to_sandbox(spec, request.facts, request.runtime)
    annotations.apply_to_sandbox(spec, request)
    seccomp.apply(spec, context, request.runtime, request.facts)
    hand_over_filter(spec, request)
    users.apply_to_sandbox(spec, request)
    return spec


def container_spec(request: ContainerInput) -> Json:
    """Return the OCI runtime spec (config.json) of a container.

    What `needed_directories` names must exist, or a missing host_path is an error here. Raises InvalidArgument, naming
    the field of ContainerConfig, for what can never work.
    """
    context = request.config.linux.security_context
    spec = _starting_point(request)
    process.apply_to_container(spec, request)
    namespaces.apply_cgroup_namespace(spec, request)
    mounts.apply_to_container(spec, request)
    _apply_proc_paths(spec, request)
    devices.apply(spec, request)
    if context.HasField("capabilities"):
        capabilities.apply(spec, context.capabilities, request.facts.capabilities)
    privileged.apply(spec, request)
    capabilities.clear_ambient(spec)
    process_label, mount_label = selinux.labels(
        context.selinux_options, request.sandbox_process_label, request.sandbox_id, request.runtime, request.facts
    )
    kind = request.handler.runtime_type
    selinux.apply(spec, process_label, mount_label, privileged=context.privileged, runtime_type=kind)
    spec["process"]["noNewPrivileges"] = context.no_new_privs
    if context.readonly_rootfs:
        spec["root"]["readonly"] = True
    resources.apply_to_container(spec, request)
    hardware.apply_classes(spec, request)
    parent = request.sandbox_config.linux.cgroup_parent
    resources.apply_cgroup_parent(spec, parent, request.id, request.handler, disabled=request.runtime.disable_cgroup)
    namespaces.apply_to_container(spec, request)
    annotations.apply_to_container(spec, request)
    users.apply_to_container(spec, request)
    apparmor.apply(spec, request)
    seccomp.apply(spec, context, request.runtime, request.facts)
    hand_over_filter(spec, request)
    hardware.inject_devices(spec, request)
    return spec


def _starting_point(request: ContainerInput) -> Json:
    path = request.handler.base_runtime_spec
    if path:
        spec = base.base_runtime_spec(path, request.id, request.facts, request.runtime_facts)
    else:
        spec = base.default_spec(request.id, request.facts, request.runtime_facts)
    spec["root"]["path"] = base.ROOTFS
    return spec


def _apply_proc_paths(spec: Json, request: ContainerInput) -> None:
    """Mask and protect what the request says, and only that; disable_proc_mount keeps the defaults instead."""
    if request.runtime.disable_proc_mount:
        return
    context = request.config.linux.security_context
    for member, paths in (("maskedPaths", context.masked_paths), ("readonlyPaths", context.readonly_paths)):
        spec["linux"].pop(member, None)
        if paths:
            spec["linux"][member] = list(paths)


def hand_over_filter(spec: Json, request: SandboxInput | ContainerInput) -> None:
    """Add the compiled filter for a runtime that takes it; the plain section stays for those that do not.

    Again after a change of the profile. An annotation of that name from the pod, or from a plugin, never comes through:
    it would replace the filter that the request asks for.
    """
    spec["annotations"].pop(bpf.ANNOTATION, None)
    profile = spec["linux"].get("seccomp")
    if profile and request.runtime_facts.seccomp_bpf_annotation:
        compiled = bpf.annotation(profile, request.facts.machine)
        if compiled:
            spec["annotations"][bpf.ANNOTATION] = compiled
