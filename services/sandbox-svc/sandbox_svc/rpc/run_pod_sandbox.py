"""RunPodSandbox: from a configuration to a ready pod, with CNI ADD hiding everything else behind it.

Order: name, ledger, network namespace; then at the same time CNI ADD and image, snapshot, files, spec, shim and the
runtime's create; then start. Whatever fails, the ledger takes back what was made.
"""

import logging
import re
import secrets
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from bulkhead import metrics
from bulkhead.errors import AlreadyExists, BulkheadError, DeadlineExceeded, Internal, InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle, cgroup_moves, netns, pod_files, process, reserve, undo, usermap, validate
from sandbox_svc.cni import AddResult, Attachment
from sandbox_svc.cni.capabilities import attachment
from sandbox_svc.node import Node
from sandbox_svc.nri_exec import between
from sandbox_svc.oci.model import SandboxInput
from sandbox_svc.oci.spec import sandbox_spec
from sandbox_svc.rootfs_users import read as rootfs_users
from sandbox_svc.runtimes import Resolved
from sandbox_svc.store.database import Entry
from sandbox_svc.store.entities import Pod
from sandbox_svc.store.records import Phase, SandboxRecord
from sandbox_svc.task.start import start_shim

logger = logging.getLogger(__name__)

#: Longest wait for a creation, in seconds, where the caller set no deadline. The creation itself goes on.
PATIENCE = 15 * 60.0
# Settings of one interface, or inherited by the next one made: they must find the pod's interfaces in place.
_INTERFACE_SYSCTL = re.compile(r"net[./]ipv[46][./](conf|neigh)[./]")


def run_pod_sandbox(
    node: Node, request: cri.RunPodSandboxRequest, context: grpc.ServicerContext
) -> cri.RunPodSandboxResponse:
    """Create and start a pod; a call with the metadata of a running creation, or of a ready pod, gets that one's id."""
    config = request.config
    validate.pod(config)
    runtime = node.runtimes.resolve(request.runtime_handler)
    if usermap.of_pod(config, Path()) and not node.user_namespaces(runtime):
        raise InvalidArgument(
            "config.linux.security_context.namespace_options.userns_options.mode is POD, expected NODE: "
            f"runtime handler {runtime.name!r} supports no user namespaces (Status, runtime_handlers.features)"
        )
    name = reserve.pod_name(config.metadata)
    ident = secrets.token_hex(32)
    outcome, first = node.pod_names.begin(
        name, lambda: node.background.operation(_create, node, config, request.runtime_handler, runtime, ident)
    )
    if not first:
        logger.info("pod %s: joining the creation that has the same metadata", name)
    found = wait_for(outcome, context, f"RunPodSandbox of {name}")
    if not first:
        _must_be_ready(node, found, name)
    return cri.RunPodSandboxResponse(pod_sandbox_id=found)


def wait_for(outcome: "Future[str]", context: grpc.ServicerContext, what: str) -> str:
    """Return a creation's id, waiting as long as the caller does; the creation goes on when the caller goes."""
    left = context.time_remaining()
    limit = PATIENCE if left is None else min(left, PATIENCE)
    try:
        return outcome.result(max(0.0, limit))
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"{what} has not finished within {limit:.0f} s; it goes on, and a retry joins it"
        ) from error


def _must_be_ready(node: Node, ident: str, name: str) -> None:
    pod = node.model.pod(ident)
    if pod.state != cri.SANDBOX_READY:
        raise AlreadyExists(f"pod {name} exists as {ident} and is not ready; remove it or raise metadata.attempt")


def _create(node: Node, config: cri.PodSandboxConfig, asked: str, runtime: Resolved, ident: str) -> str:
    began = time.monotonic()
    record = SandboxRecord(
        id=ident, config=config, handler=runtime.name, requested_handler=asked, created_at=time.time_ns()
    )
    pod = Pod(record, node.database)
    creation = _Creation(node, pod, runtime)
    try:
        with cgroup_moves.readiness.kept():
            creation.run()
    except BaseException as error:
        logger.warning("pod %s: %s failed after %.1f s: %s", ident, creation.step, time.monotonic() - began, error)
        _take_back(node, pod)
        if isinstance(error, BulkheadError):
            raise type(error)(f"{creation.step}: {error}") from error
        raise Internal(f"{creation.step}: {type(error).__name__}: {error}") from error
    logger.info("pod %s/%s is ready as %s", config.metadata.namespace, config.metadata.name, ident)
    return ident


def _take_back(node: Node, pod: Pod) -> None:
    """Undo a creation; what cannot be undone now is left over (sandbox_svc.leftovers)."""
    node.nri.pod_removed(pod)
    node.ledger.undo(pod.id)
    node.database.forget(pod.record)
    node.model.drop_pod(pod)


class _Creation:
    """The steps of one creation; `step` is the one to blame."""

    def __init__(self, node: Node, pod: Pod, runtime: Resolved) -> None:
        self._node = node
        self._pod = pod
        self._runtime = runtime
        self._config = pod.record.config
        self._networked = not pod_files.host_network(self._config)
        self._users = node.users(pod)
        self.step = "preparing"

    def run(self) -> None:
        """Make the pod ready."""
        node, pod, ident = self._node, self._pod, self._pod.id
        where = node.netns(ident)
        attached = attachment(ident, str(where), self._config)
        network = node.network(self._runtime.name)
        plan = network.plan(attached) if self._networked else AddResult()
        # In the model before the ledger: what only the ledger knows is taken for left over.
        node.model.add_pod(pod)
        pod.update(self._intents(attached, plan), netns=str(where) if self._networked else "")
        self.step = "making the pod's namespaces"
        with metrics.stage("netns"):
            self._make_namespaces(where)
        adding = node.background.part(self._attach, attached, plan) if self._networked else None
        try:
            if adding is not None and any(_INTERFACE_SYSCTL.match(s) for s in self._config.linux.sysctls):
                adding.result()
            self._make_pause(adding)
        finally:
            added = self._joined(adding)
        self.step = "starting the pause container"
        self._start(added)

    def _make_namespaces(self, where: Path) -> None:
        users = self._users
        if users is None:
            if self._networked:
                netns.create(where)
        elif self._networked:
            netns.create_owned(where, users.uids, users.gids, users.pin)
        else:
            netns.create_user(users.pin, users.uids, users.gids)

    def _joined(self, adding: "Future[AddResult] | None") -> AddResult:
        """Wait for CNI ADD; if the other half has failed already, its error is the one to report."""
        if adding is None:
            return AddResult()
        failed = adding.exception()
        if failed is not None:
            self.step = "attaching the pod network"
        return adding.result()

    def _intents(self, attached: Attachment, plan: AddResult) -> tuple[Entry, ...]:
        node, ident = self._node, self._pod.id
        entries = [undo.directory(node.pod_directory(ident))]
        if self._users is not None:
            entries.append(undo.pinned_netns(self._users.pin))
        if self._networked:
            entries += [undo.pinned_netns(node.netns(ident)), undo.network(self._runtime.name, attached, plan)]
        if not pod_files.host_ipc(self._config):
            entries.append(undo.mount(node.shm(ident)))
        return (*entries, undo.snapshot(ident), undo.directory(node.bundle(ident)))

    def _attach(self, attached: Attachment, plan: AddResult) -> AddResult:
        result = self._node.network(self._runtime.name).add(attached, plan)
        entry = undo.network(self._runtime.name, attached, result)
        self._node.database.amend(self._pod.id, entry.kind, entry.data)
        return result

    def _make_pause(self, adding: "Future[AddResult] | None") -> None:
        node, pod, config, ident = self._node, self._pod, self._config, self._pod.id
        self.step = "resolving the sandbox image"
        image = node.images.resolve_or_pull(node.config.images.sandbox_image, self._runtime.name, config)
        self.step = "preparing the sandbox's snapshot"
        prepared = node.images.prepare(ident, image, config, snapshotter=self._runtime.handler.snapshotter)
        self.step = "writing the pod's files"
        node.pod_directory(ident).mkdir(parents=True, mode=0o755)
        files = pod_files.paths(node.pod_directory(ident), node.shm(ident), config)
        with metrics.stage("pod_files"):
            pod_files.write(files, config)
        self.step = "building the sandbox's spec"
        spec = sandbox_spec(
            SandboxInput(
                id=ident,
                config=config,
                image_config=image.config,
                image_name=node.config.images.sandbox_image,
                runtime=node.config.runtime,
                handler=self._runtime.handler,
                facts=node.facts,
                runtime_facts=self._runtime.facts,
                netns_path=pod.record.netns,
                files=files,
                users=rootfs_users(prepared.mounts),
                userns_path=str(self._users.pin) if self._users else "",
            )
        )
        place = bundle.write(node.bundle(ident), spec, self._users)
        if adding is not None and not self._runtime.ours:
            adding.result()  # a machine around the pod (Kata) gets the interfaces that it finds at create
        self.step = "starting the shim"
        pod.link = start_shim(node, pod, self._runtime, place)
        self.step = "creating the pause container"
        self._mounts = prepared.mounts
        self._plugins = between.Creation(node, pod, self._create_task)
        self._plugins.create(str(spec["linux"].get("cgroupsPath", "")))
        self._image_id = image.id
        self._label = str(spec["process"].get("selinuxLabel", ""))

    def _create_task(self, cgroups_path: str) -> int:
        """Have the runtime create the pause container in that cgroup."""
        node, pod, users = self._node, self._pod, self._users
        assert pod.link is not None
        self._cgroup = cgroups_path
        node.database.intend(pod.id, [undo.task(pod.id, pod.link.binding, cgroups_path)])
        with metrics.stage("task_create"), usermap.mapped(self._mounts, users, node.id_stage(pod.id)) as mounts:
            options = self._runtime.options(users.root if users else None)
            return pod.link.create(pod.id, str(node.bundle(pod.id)), mounts, options=options)

    def _start(self, added: AddResult) -> None:
        pod = self._pod
        assert pod.link is not None
        self._plugins.ask()
        now = time.time_ns()
        with metrics.stage("task_start"):
            pid = pod.link.start(pod.id)
        facts: dict[str, Any] = {
            "phase": Phase.PRESENT,
            "started_at": now,
            "process": process.identify(pid),
            "shim": pod.link.binding,
            "ips": added.ips,
            "image_id": self._image_id,
            "image_name": self._node.config.images.sandbox_image,
            "cgroup": self._cgroup,
            "process_label": self._label,
        }
        with self._node.nri.operation():
            self.step = "telling NRI plugins"
            self._node.nri.running(pod, replace(pod.record, **facts))
            # Not before: whatever fails up to here is undone by who knows it, not by the process's end.
            self._node.watcher.park(pod, pod.link)
            pod.update(**facts)
