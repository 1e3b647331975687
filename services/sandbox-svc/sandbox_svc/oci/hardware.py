"""Requests for hardware: CDI devices, block I/O and RDT classes; refused where they cannot be met.

A container that silently started without its device or its class would be worse off than one that says why it did not.
"""

from bulkhead.errors import FailedPrecondition, Unimplemented
from sandbox_svc.oci.model import ContainerInput

_CDI_ANNOTATION = "cdi.k8s.io/"


def check(request: ContainerInput) -> None:
    """Raise for a CDI device (Unimplemented), and for a class, none being configured (FailedPrecondition).

    containerd's options ignore_blockio_not_enabled_errors and ignore_rdt_not_enabled_errors let the container run
    without its class, and enable_cdi = false without its device.
    """
    runtime = request.runtime
    if runtime.enable_cdi and (names := _cdi_devices(request)):
        raise Unimplemented(f"CDI_devices: {', '.join(names)}: CDI is not supported yet")
    for kind, prefix, ignored in (
        ("blockio", "blockio.resources.beta.kubernetes.io/", runtime.ignore_blockio_not_enabled_errors),
        ("RDT", "rdt.resources.beta.kubernetes.io/", runtime.ignore_rdt_not_enabled_errors),
    ):
        wanted = _class(request, prefix, f"io.kubernetes.cri.{kind.lower()}-class")
        if wanted and not ignored:
            raise FailedPrecondition(
                f"annotations: {kind} class {wanted!r} for container {request.config.metadata.name}: "
                f"no {kind} classes are configured on this node"
            )


def _cdi_devices(request: ContainerInput) -> list[str]:
    annotated = [value for key, value in request.config.annotations.items() if key.startswith(_CDI_ANNOTATION)]
    return [*(device.name for device in request.config.CDI_devices), *annotated]


def _class(request: ContainerInput, pod_prefix: str, container_key: str) -> str:
    """Return the class asked for: the container's own annotation, the pod's for that container, the pod's for all."""
    container, pod = request.config.annotations, request.sandbox_config.annotations
    name = request.config.metadata.name
    if container_key in container:
        return str(container[container_key])
    return str(pod.get(f"{pod_prefix}container.{name}") or pod.get(f"{pod_prefix}pod") or "")
