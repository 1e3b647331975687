"""Requests for hardware: CDI devices, block I/O and RDT classes; refused where they cannot be met.

A container that silently started without its device or its class would be worse off than one that says why it did not.
"""

import contextlib
from collections.abc import Iterator

from bulkhead.errors import FailedPrecondition
from sandbox_svc.oci import cdi
from sandbox_svc.oci.model import ContainerInput, Json
from sandbox_svc.oci.rdt import ROOT_CLASS


def apply_classes(spec: Json, request: ContainerInput) -> None:
    """Put a container into the block I/O and the RDT class that its annotations, or its pod's, name.

    FailedPrecondition where there are no classes, or not that one. containerd's ignore_blockio_not_enabled_errors and
    ignore_rdt_not_enabled_errors let the container run without a class where none are configured.
    """
    runtime, hardware = request.runtime, request.hardware
    name, _ = wanted_class(request, "blockio")
    if name and (hardware.blockio_enabled or not runtime.ignore_blockio_not_enabled_errors):
        with _blamed(request, f"block I/O class {name!r}"):
            spec["linux"]["resources"]["blockIO"] = hardware.block_io(name)
    name, from_pod = wanted_class(request, "rdt")
    if name and (hardware.rdt_enabled or not runtime.ignore_rdt_not_enabled_errors):
        with _blamed(request, f"RDT class {name!r}"):
            hardware.check_rdt_class(name, from_pod=from_pod)
        if name != ROOT_CLASS:
            spec["linux"]["intelRdt"] = {"closID": name}


def inject_devices(spec: Json, request: ContainerInput) -> None:
    """Give a container its CDI devices; enable_cdi = false lets it run without.

    The last change of a spec: devices without an owner belong to the user that the process has. FailedPrecondition for
    a network device where the runtime does not know of them.
    """
    if not request.runtime.enable_cdi:
        return
    names = cdi.requested(request.config)
    cdi.inject(spec, names, request.hardware)
    if spec["linux"].get("netDevices") and not request.runtime_facts.net_devices:
        raise FailedPrecondition(
            f"CDI devices {', '.join(names)} bring network devices, which the OCI runtime does not know of "
            "(`features` has no linux.netDevices)"
        )


def wanted_class(request: ContainerInput, kind: str) -> tuple[str, bool]:
    """Return the class of kind "blockio" or "rdt", "" for none, and whether it is the pod that asks for it.

    The container's own annotation counts first, then the pod's for that container, then the pod's for all.
    """
    container, pod = request.config.annotations, request.sandbox_config.annotations
    own = f"io.kubernetes.cri.{kind}-class"
    if own in container:
        return str(container[own]), False
    prefix = f"{kind}.resources.beta.kubernetes.io/"
    for key in (f"{prefix}container.{request.config.metadata.name}", f"{prefix}pod"):
        if key in pod:
            return str(pod[key]), True
    return "", False


@contextlib.contextmanager
def _blamed(request: ContainerInput, what: str) -> Iterator[None]:
    """Name the container and the class in what goes wrong inside."""
    try:
        yield
    except FailedPrecondition as error:
        raise FailedPrecondition(f"annotations: {what} of container {request.config.metadata.name}: {error}") from error
