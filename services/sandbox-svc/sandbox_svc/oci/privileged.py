"""What "privileged" means: all our capabilities, all devices, nothing masked, no confinement."""

from bulkhead.errors import InvalidArgument
from sandbox_svc.oci import capabilities, devices, mounts
from sandbox_svc.oci.model import ContainerInput, Json


def apply(spec: Json, request: ContainerInput) -> None:
    """Lift the container's confinement; the pod must have been announced as privileged too."""
    if not request.config.linux.security_context.privileged:
        return
    if not request.sandbox_config.linux.security_context.privileged:
        raise InvalidArgument("linux.security_context.privileged: the pod is not privileged")
    capabilities.replace(spec, request.facts.capabilities)
    for member in ("maskedPaths", "readonlyPaths", "seccomp"):
        spec["linux"].pop(member, None)
    spec["process"].pop("apparmorProfile", None)
    mounts.writable(spec, "sysfs")
    mounts.writable(spec, "cgroup")
    if not request.handler.privileged_without_host_devices:
        devices.apply_all(spec, request)
        devices.allow_all(spec)
    elif request.handler.privileged_without_host_devices_all_devices_allowed:
        devices.allow_all(spec)
