"""The three entries: the spec of a pause container, of a container, and of a process exec'd in one."""

from collections.abc import Sequence

from sandbox_svc.oci.model import ContainerInput, ImageVolume, Json, SandboxInput


def sandbox_spec(request: SandboxInput) -> Json:
    """Return the OCI runtime spec (config.json) of a pod's pause container.

    Raises InvalidArgument, naming the field of PodSandboxConfig, for what can never work.
    """
    raise NotImplementedError


def container_spec(request: ContainerInput) -> Json:
    """Return the OCI runtime spec (config.json) of a container.

    Image volumes (`image_volumes`) are among its mounts, so their directories must be made before the runtime's create.
    Raises InvalidArgument, naming the field of ContainerConfig, for what can never work.
    """
    raise NotImplementedError


def image_volumes(request: ContainerInput) -> tuple[ImageVolume, ...]:
    """Return the volumes that the image defines and no mount of the request covers; none where they are ignored."""
    raise NotImplementedError


def exec_process(container: Json, cmd: Sequence[str], tty: bool) -> Json:
    """Return the process object (runtime-spec `process`) that runs cmd in the container of that spec."""
    raise NotImplementedError
