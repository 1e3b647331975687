"""Pods and containers as NRI's messages, from our records and the OCI specs of their bundles."""

import json
import os

from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.nri import convert_resources, convert_spec
from sandbox_svc.oci import bpf
from sandbox_svc.oci.model import Json
from sandbox_svc.store.records import ContainerRecord, Phase, SandboxRecord

_STATES = {
    cri.CONTAINER_CREATED: nri.CONTAINER_CREATED,
    cri.CONTAINER_RUNNING: nri.CONTAINER_RUNNING,
    cri.CONTAINER_EXITED: nri.CONTAINER_STOPPED,
}


def pod(record: SandboxRecord, spec: Json) -> nri.PodSandbox:
    """Return a pod; spec is its pause container's, {} where that is gone."""
    try:
        return _pod(record, spec)
    except UnicodeEncodeError:
        return _pod(record, _text(spec))


def container(record: ContainerRecord, spec: Json, pid: int = 0) -> nri.Container:
    """Return a container; pid is that of a process which is made and not yet recorded as started."""
    try:
        return _container(record, spec, pid)
    except UnicodeEncodeError:
        return _container(record, _text(spec), pid)


def _text(spec: Json) -> Json:
    """Return a spec with "?" for bytes that are no UTF-8: the node's files, such as devices, may have such names."""
    found: Json = json.loads(json.dumps(spec, ensure_ascii=False).encode(errors="replace"))
    return found


def _pod(record: SandboxRecord, spec: Json) -> nri.PodSandbox:
    config, section = record.config, spec.get("linux") or {}
    linux = nri.LinuxPodSandbox(
        cgroup_parent=config.linux.cgroup_parent,
        cgroups_path=section.get("cgroupsPath", ""),
        namespaces=convert_spec.namespaces(filter(_there, section.get("namespaces") or ())),
        resources=convert_resources.from_oci(section.get("resources")),
    )
    if config.linux.HasField("overhead"):
        linux.pod_overhead.CopyFrom(convert_resources.from_cri(config.linux.overhead))
    if config.linux.HasField("resources"):
        linux.pod_resources.CopyFrom(convert_resources.from_cri(config.linux.resources))
    return nri.PodSandbox(
        id=record.id,
        name=config.metadata.name,
        uid=config.metadata.uid,
        namespace=config.metadata.namespace,
        labels=config.labels,
        annotations={**config.annotations, **(spec.get("annotations") or {})},
        runtime_handler=record.requested_handler,
        linux=linux,
        pid=record.process.pid if record.process else 0,
        ips=record.ips,
    )


def _there(namespace: Json) -> bool:
    """Tell whether a namespace can be shown: a pod's network goes before the pod does, and its path with it."""
    return namespace["type"] != "network" or os.path.exists(namespace.get("path", ""))


def _container(record: ContainerRecord, spec: Json, pid: int) -> nri.Container:
    process, config = spec.get("process") or {}, record.config
    return nri.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        name=config.metadata.name,
        state=_STATES[record.state] if record.phase is not Phase.CREATING else nri.CONTAINER_UNKNOWN,
        labels=config.labels,
        annotations=_annotations(config, spec),
        args=process.get("args") or (),
        env=process.get("env") or (),
        mounts=convert_spec.mounts(spec.get("mounts") or ()),
        hooks=convert_spec.hooks(spec.get("hooks")),
        linux=_linux(config, spec),
        pid=pid or (record.process.pid if record.process else 0),
        rlimits=convert_spec.rlimits(process.get("rlimits") or ()),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        status_reason=record.reason,
        status_message=record.message,
        CDI_devices=[nri.CDIDevice(name=device.name) for device in config.CDI_devices],
        user=convert_spec.user(process),
        image=_image(record),
    )


def _annotations(config: cri.ContainerConfig, spec: Json) -> dict[str, str]:
    """Return the annotations of spec and request; the compiled filter is between us and crun."""
    found = {**(spec.get("annotations") or {}), **config.annotations}
    found.pop(bpf.ANNOTATION, None)
    return found


def _linux(config: cri.ContainerConfig, spec: Json) -> nri.LinuxContainer:
    linux = nri.LinuxContainer(
        resources=convert_resources.from_oci((spec.get("linux") or {}).get("resources")), **convert_spec.linux(spec)
    )
    context = config.linux.security_context
    if context.HasField("seccomp"):
        # The CRI's numbers of profile types are NRI's.
        linux.seccomp_profile.profile_type = int(context.seccomp.profile_type)  # type: ignore[assignment]
        linux.seccomp_profile.localhost_ref = context.seccomp.localhost_ref
        linux.seccomp_profile.SetInParent()
    return linux


def _image(record: ContainerRecord) -> nri.Image | None:
    """Return which image it is: its tag, the digest of its manifest or index, and that of its config."""
    if not record.image_id:
        return None
    return nri.Image(
        name=record.image_name or record.image_digest,
        digest=record.image_digest.rpartition("@")[2],
        config_digest=record.image_id,
    )
