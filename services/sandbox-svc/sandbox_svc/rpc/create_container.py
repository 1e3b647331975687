"""CreateContainer: the record, the snapshot and the bundle of a container; its process is made by StartContainer."""

import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from bulkhead import metrics
from bulkhead.errors import AlreadyExists, BulkheadError, FailedPrecondition, Internal, InvalidArgument, NotFound
from bulkhead.proto import images_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle, cgroup_moves, image_mounts, limits, pod_files, relabel, reserve, undo, validate
from sandbox_svc.images import Image
from sandbox_svc.node import Node
from sandbox_svc.nri import abilities, convert_resources
from sandbox_svc.nri.apply import apply
from sandbox_svc.oci import apparmor_default
from sandbox_svc.oci.model import ContainerInput, Json
from sandbox_svc.oci.spec import container_spec, hand_over_filter, image_volumes, needed_directories, relabelled
from sandbox_svc.rootfs_users import read as rootfs_users
from sandbox_svc.rpc import remove_container
from sandbox_svc.rpc.run_pod_sandbox import wait_for
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.records import ContainerRecord, Phase
from sandbox_svc.volumes import fill

logger = logging.getLogger(__name__)

#: A container's annotation by which `bulkhead run --key` names the keys that it lends to this one container.
KEY_GRANT = "io.bulkhead.key-grant"


def create_container(
    node: Node, request: cri.CreateContainerRequest, context: grpc.ServicerContext
) -> cri.CreateContainerResponse:
    """Create a container; a retry of a running creation joins it, one of a finished creation gets the same id."""
    config = request.config
    validate.container(config)
    pod = node.model.pod(request.pod_sandbox_id)
    pod.require_ready()
    name = reserve.container_name(config.metadata, pod.id)
    ident = secrets.token_hex(32)
    outcome, first = node.container_names.begin(
        name, lambda: node.background.operation(_create, node, pod, config, ident)
    )
    found = wait_for(outcome, context, f"CreateContainer of {name}")
    if not first:
        _must_be_the_same(node, found, config, name)
    return cri.CreateContainerResponse(container_id=found)


def _must_be_the_same(node: Node, ident: str, config: cri.ContainerConfig, name: str) -> None:
    record = node.model.container(ident).record
    if record.state != cri.CONTAINER_CREATED or record.config != config:
        raise AlreadyExists(f"container {name} exists as {ident}; remove it or raise metadata.attempt")


def _create(node: Node, pod: Pod, config: cri.ContainerConfig, ident: str) -> str:
    record = ContainerRecord(id=ident, sandbox_id=pod.id, config=config, created_at=time.time_ns())
    container = Container(record, pod, node.database)
    creation = _Creation(node, container)
    # Held so that a removal of the pod, which begins meanwhile, waits for the creation and then removes it.
    with container.operation:
        try:
            with cgroup_moves.readiness.kept():  # for StartContainer, which follows at once
                creation.run()
        except BaseException as error:
            logger.warning("container %s: %s failed: %s", ident, creation.step, error)
            node.nri.uncreated(container)
            remove_container.clean_up(node, container)
            if isinstance(error, BulkheadError):
                raise type(error)(f"{creation.step}: {error}") from error
            raise Internal(f"{creation.step}: {type(error).__name__}: {error}") from error
    logger.info("container %s (%s) created in pod %s", ident, config.metadata.name, pod.id)
    return ident


class _Creation:
    """The steps of one creation; `step` is the one to blame."""

    def __init__(self, node: Node, container: Container) -> None:
        self._node = node
        self._container = container
        self._pod = container.pod
        #: The image ids of the images that are volumes, in their order.
        self._volumes: list[str] = []
        self.step = "preparing"

    def run(self) -> None:
        """Make everything a container needs before its process."""
        node, container, pod, ident = self._node, self._container, self._pod, self._container.id
        config, sandbox = container.record.config, pod.record.config
        self.step = "resolving the image"
        image = node.images.resolve(config.image.image, pod.record.handler, config.image.user_specified_image)
        # In the model before the ledger: what only the ledger knows is taken for left over.
        node.model.add_container(container)
        container.update(
            (
                undo.directory(node.container_directory(ident)),
                undo.snapshot(ident),
                undo.directory(node.bundle(ident)),
                *image_mounts.intents(container.record, node.image_directory(ident)),
            )
        )
        self.step = "preparing the snapshot"
        prepared = node.images.prepare(
            ident,
            image,
            sandbox,
            snapshotter=node.runtimes.resolve(pod.record.handler).handler.snapshotter,
            grant=config.annotations.get(KEY_GRANT, ""),
            mounts=config.mounts,
        )
        self.step = "mounting images"
        mounted = image_mounts.mount_all(
            container.record, node.image_directory(ident), self._prepare_volume, node.users(pod), node.id_stage(ident)
        )
        self.step = "building the spec"
        request = self._input(image, prepared, mounted)
        with metrics.stage("container_spec"):
            for path in needed_directories(request):
                os.makedirs(path, mode=0o755, exist_ok=True)
            fill(image_volumes(request), prepared.mounts)
            if node.facts.apparmor and not node.config.runtime.disable_apparmor:
                apparmor_default.ensure_loaded(node.facts.host)
            spec = container_spec(request)
            relabel.relabel(relabelled(request, spec), spec["linux"].get("mountLabel", ""))
        with node.nri.operation():
            self.step = "asking NRI plugins"
            adjusted = self._adjust(request, image, spec)
            self.step = "writing the bundle"
            self._log_directory()
            place = bundle.write(node.bundle(ident), spec, node.users(pod))
            bundle.write_mounts(place, prepared.mounts)
            pod.require_ready()
            container.update(phase=Phase.PRESENT, **self._facts(image, prepared, spec), **adjusted)
            node.nri.created(container)

    def _adjust(self, request: ContainerInput, image: Image, spec: Json) -> dict[str, Any]:
        """Change the spec as NRI plugins want it; return what the record says of that, the limits that status shows."""
        container = self._container
        described = replace(container.record, **_names(image))
        adjustment = self._node.nri.creating(container, described, spec)
        if adjustment is None:
            return {}
        apply(spec, adjustment, abilities.of(request))
        hand_over_filter(spec, request)
        if not adjustment.linux.HasField("resources"):
            return {}
        shown = convert_resources.to_cri(adjustment.linux.resources)
        return {"resources": limits.merged(b"", container.record.config, shown)}

    def _prepare_volume(self, reference: str, key: str) -> Sequence[images_pb2.Mount]:
        """Make the snapshot of an image that is a volume; the kubelet has pulled it."""
        node, record = self._node, self._pod.record
        image = node.images.resolve(reference, record.handler)
        self._volumes.append(image.id)
        return node.images.prepare(
            key,
            image,
            record.config,
            snapshotter=node.runtimes.resolve(record.handler).handler.snapshotter,
            mounts=self._container.record.config.mounts,
        ).mounts

    def _input(self, image: Image, prepared: images_pb2.PrepareResponse, mounted: Mapping[int, str]) -> ContainerInput:
        node, pod, container = self._node, self._pod, self._container
        runtime = node.runtimes.resolve(pod.record.handler)
        assert pod.record.process is not None
        return ContainerInput(
            id=container.id,
            sandbox_id=pod.id,
            config=container.record.config,
            sandbox_config=pod.record.config,
            image_config=image.config,
            image_name=container.record.config.image.user_specified_image or image.name,
            runtime=node.config.runtime,
            handler=runtime.handler,
            facts=node.facts,
            runtime_facts=runtime.facts,
            sandbox_pid=pod.record.process.pid,
            files=pod_files.paths(node.pod_directory(pod.id), node.shm(pod.id), pod.record.config),
            hardware=node.hardware,
            users=rootfs_users(prepared.mounts),
            target_pid=self._target_pid(),
            image_mounts=mounted,
            volumes_directory=str(node.container_directory(container.id) / "volumes"),
            sandbox_process_label=pod.record.process_label,
        )

    def _target_pid(self) -> int:
        """Return the process whose PID namespace is joined (mode TARGET, the kubelet's ephemeral containers)."""
        options = self._container.record.config.linux.security_context.namespace_options
        if options.pid != cri.TARGET:
            return 0
        try:
            target = self._node.model.container(options.target_id)
        except NotFound as error:
            raise InvalidArgument(f"namespace_options.target_id: {error}") from error
        if target.record.sandbox_id != self._pod.id:
            raise InvalidArgument(f"namespace_options.target_id {options.target_id!r} is in another pod")
        if target.record.state != cri.CONTAINER_RUNNING or target.record.process is None:
            raise FailedPrecondition(f"namespace_options.target_id {options.target_id!r} is not running")
        return target.record.process.pid

    def _log_directory(self) -> None:
        if path := self._log_path():
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)

    def _log_path(self) -> str:
        directory, name = self._pod.record.config.log_directory, self._container.record.config.log_path
        return os.path.join(directory, name) if directory and name else ""

    def _facts(self, image: Image, prepared: images_pb2.PrepareResponse, spec: Json) -> dict[str, Any]:
        user = spec["process"]["user"]
        return {
            **_names(image),
            "volume_images": tuple(self._volumes),
            "upper_dir": prepared.upper_dir,
            "cgroup": str(spec["linux"].get("cgroupsPath", "")),
            "log_path": self._log_path(),
            "image_stop_signal": str((image.config.get("config") or {}).get("StopSignal") or ""),
            "uid": int(user.get("uid", 0)),
            "gid": int(user.get("gid", 0)),
            "groups": tuple(user.get("additionalGids") or ()),
        }


def _names(image: Image) -> dict[str, Any]:
    """Return what a record says of its image."""
    return {
        "image_id": image.id,
        "image_name": next(iter(image.tags), ""),
        "image_digest": next(iter(image.digests), ""),
    }
