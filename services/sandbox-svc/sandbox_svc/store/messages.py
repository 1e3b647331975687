"""CRI messages from records: what lists and statuses say."""

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import stop_signal
from sandbox_svc.store.records import ContainerRecord, SandboxRecord


def framed(item: bytes) -> bytes:
    """Return a serialised message as element of a repeated field 1, so that a list is a join of its elements.

    Tag 0x0a is field 1, length-delimited (protobuf encoding); every list response of the CRI has its items there.
    """
    length, prefix = len(item), bytearray(b"\x0a")
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + item


def pod_item(record: SandboxRecord, state: "cri.PodSandboxState") -> cri.PodSandbox:
    """Return a pod as ListPodSandbox shows it."""
    return cri.PodSandbox(
        id=record.id,
        metadata=record.config.metadata,
        state=state,
        created_at=record.created_at,
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.requested_handler,
    )


def pod_status(record: SandboxRecord, state: "cri.PodSandboxState") -> cri.PodSandboxStatus:
    """Return a pod as PodSandboxStatus shows it."""
    network = None
    if state == cri.SANDBOX_READY and record.ips:
        network = cri.PodSandboxNetworkStatus(
            ip=record.ips[0], additional_ips=[cri.PodIP(ip=ip) for ip in record.ips[1:]]
        )
    options = record.config.linux.security_context.namespace_options
    return cri.PodSandboxStatus(
        id=record.id,
        metadata=record.config.metadata,
        state=state,
        created_at=record.created_at,
        network=network or cri.PodSandboxNetworkStatus(),
        linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=options)),
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.requested_handler,
    )


def container_item(record: ContainerRecord, state: "cri.ContainerState") -> cri.Container:
    """Return a container as ListContainers shows it.

    image_ref is the image id there: the kubelet compares it with ListImages to know which images are in use.
    """
    return cri.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        metadata=record.config.metadata,
        image=record.config.image,
        image_ref=record.image_id,
        image_id=record.image_id,
        state=state,
        created_at=record.created_at,
        labels=record.config.labels,
        annotations=record.config.annotations,
    )


def container_status(record: ContainerRecord, state: "cri.ContainerState") -> cri.ContainerStatus:
    """Return a container as ContainerStatus shows it, with a repository digest as image_ref where there is one."""
    image = cri.ImageSpec()
    image.CopyFrom(record.config.image)
    if record.image_name:
        image.image = record.image_name
    return cri.ContainerStatus(
        id=record.id,
        metadata=record.config.metadata,
        state=state,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image=image,
        image_ref=record.image_digest or record.image_id,
        image_id=record.image_id,
        reason=record.reason,
        message=record.message,
        labels=record.config.labels,
        annotations=record.config.annotations,
        mounts=mounts(record),
        log_path=record.log_path,
        resources=resources(record),
        user=cri.ContainerUser(
            linux=cri.LinuxContainerUser(uid=record.uid, gid=record.gid, supplemental_groups=record.groups)
        ),
        stop_signal=stop_signal.shown(record),
    )


def mounts(record: ContainerRecord) -> list[cri.Mount]:
    """Return a container's mounts, with what PullImage had answered as image_ref of those that are images (KEP-5365).

    A container whose record an older release wrote has none there.
    """
    found = list(record.config.mounts)
    for (index, mount), image_id in zip(record.image_mounts().items(), record.volume_images, strict=False):
        shown = cri.Mount()
        shown.CopyFrom(mount)
        shown.image.image_ref = image_id
        found[index] = shown
    return found


def resources(record: ContainerRecord) -> cri.ContainerResources:
    """Return the limits that hold now: the last update's, or those of the creation."""
    if record.resources:
        return cri.ContainerResources(linux=cri.LinuxContainerResources.FromString(record.resources))
    if record.config.linux.HasField("resources"):
        return cri.ContainerResources(linux=record.config.linux.resources)
    return cri.ContainerResources()
