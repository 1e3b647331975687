"""The specs that Bulkhead writes against those of containerd 2.x, for the same requests, field by field."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from oracle import cases, compare
from oracle.cases import Case
from oracle.compare import Difference
from sandbox_svc import facts
from sandbox_svc.oci.host import LinuxHost
from sandbox_svc.oci.model import (
    ContainerInput,
    HostFacts,
    Json,
    RootfsUsers,
    RuntimeFacts,
    SandboxFiles,
    SandboxInput,
)
from sandbox_svc.oci.spec import container_spec, needed_directories, sandbox_spec
from support import images
from support.containerd import Containerd

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: A handler with what can be set on one, in containerd's words; `HANDLERS` says the same to our builder.
SPECIAL = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.special]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["pod.example/*", "io.kubernetes.cri.*"]
container_annotations = ["container.example/?", "io.kubernetes.cri.*"]
privileged_without_host_devices = true
privileged_without_host_devices_all_devices_allowed = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.special.options]
BinaryName = "/usr/sbin/runc"
"""
HANDLERS = {
    "": RuntimeHandler(),
    "special": RuntimeHandler(
        name="special",
        pod_annotations=("pod.example/*", "io.kubernetes.cri.*"),
        container_annotations=("container.example/?", "io.kubernetes.cri.*"),
        privileged_without_host_devices=True,
        privileged_without_host_devices_all_devices_allowed=True,
    ),
}

#: What `Image` puts into every image configuration.
ENVIRONMENT = {"Env": ["PATH=/usr/bin:/bin"]}

#: As moby and podman write profiles, with members that runtime-spec does not know.
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
    "syscalls": [
        {"names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "comment": "no"},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}],
        },
    ],
}


@dataclass
class Oracle:
    """A running containerd, and what was found by comparing with it so far."""

    peer: Containerd
    scratch: Path
    facts: HostFacts
    found: dict[str, list[Difference]] = field(default_factory=dict)

    def compare(self, case: Case) -> list[Difference]:
        """Run the pod under containerd once, build its specs ourselves, and return where they differ."""
        if case.name not in self.found:
            self.found[case.name] = list(self._compare(case))
        return self.found[case.name]

    def _compare(self, case: Case) -> Iterator[Difference]:
        runtime = self.peer.runtime_service()
        sandbox = runtime.RunPodSandbox(
            cri.RunPodSandboxRequest(config=case.pod, runtime_handler=case.handler), timeout=60
        ).pod_sandbox_id
        try:
            pause = self._spec(sandbox)
            yield from compare.differences(case.name, pause, self._sandbox_spec(case, sandbox, pause))
            pids = {"": self._pid(sandbox)}
            ids: dict[str, str] = {}
            for name, config in case.containers.items():
                config.metadata.name = name
                config.image.image = f"{self.peer.registry}/{_repository(case)}:oracle"
                self._aim(config, ids)
                container = runtime.CreateContainer(
                    cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=case.pod),
                    timeout=60,
                ).container_id
                runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
                ids[name], pids[container] = container, self._pid(container)
                ours = self._container_spec(case, config, sandbox, container, pids)
                yield from compare.differences(f"{case.name}/{name}", self._spec(container), ours)
        finally:
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=sandbox), timeout=60)
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox), timeout=60)

    @staticmethod
    def _aim(config: cri.ContainerConfig, ids: dict[str, str]) -> None:
        """Replace the name of a target container by its id."""
        options = config.linux.security_context.namespace_options
        if options.target_id:
            options.target_id = ids[options.target_id]

    def _bundle(self, id: str) -> Path:
        return self.peer.directory / "state" / "io.containerd.runtime.v2.task" / "k8s.io" / id

    def _spec(self, id: str) -> Json:
        """Return the config.json that the runtime was given."""
        loaded: Json = json.loads((self._bundle(id) / "config.json").read_text())
        return loaded

    def _pid(self, id: str) -> int:
        return int((self._bundle(id) / "init.pid").read_text())

    def _files(self, sandbox: str) -> SandboxFiles:
        kept = self.peer.directory / "root" / "io.containerd.grpc.v1.cri" / "sandboxes" / sandbox
        volatile = self.peer.directory / "state" / "io.containerd.grpc.v1.cri" / "sandboxes" / sandbox
        return SandboxFiles(
            str(kept / "hostname"), str(kept / "hosts"), str(kept / "resolv.conf"), str(volatile / "shm")
        )

    def _sandbox_spec(self, case: Case, sandbox: str, theirs: Json) -> Json:
        """Build the pause container's spec; only the network namespace's name is taken from containerd's."""
        netns = next((ns.get("path", "") for ns in theirs["linux"]["namespaces"] if ns["type"] == "network"), "")
        return sandbox_spec(
            SandboxInput(
                id=sandbox,
                config=case.pod,
                image_config={"config": ENVIRONMENT | images.pause().config},
                image_name=f"{self.peer.registry}/pause:1",
                runtime=_runtime(),
                handler=HANDLERS[case.handler],
                facts=self.facts,
                runtime_facts=RuntimeFacts(),
                netns_path=netns,
                files=self._files(sandbox),
            )
        )

    def _container_spec(
        self, case: Case, config: cri.ContainerConfig, sandbox: str, id: str, pids: dict[str, int]
    ) -> Json:
        request = ContainerInput(
            id=id,
            sandbox_id=sandbox,
            config=config,
            sandbox_config=case.pod,
            image_config={"config": _image_config(case)},
            image_name=f"{self.peer.registry}/{_repository(case)}:oracle",
            runtime=_runtime(),
            handler=HANDLERS[case.handler],
            facts=self.facts,
            runtime_facts=RuntimeFacts(),
            sandbox_pid=pids[""],
            files=self._files(sandbox),
            users=RootfsUsers(images.ETC_PASSWD.encode(), images.ETC_GROUP.encode()),
            target_pid=pids.get(config.linux.security_context.namespace_options.target_id, 0),
            volumes_directory=str(self.scratch / "volumes" / id),
        )
        for directory in needed_directories(request):
            Path(directory).mkdir(parents=True, exist_ok=True)
        return container_spec(request)


def _runtime() -> Runtime:
    """Return the options that containerd runs with: its defaults, and what a machine like CI's needs."""
    return Runtime(restrict_oom_score_adj=True)


def _repository(case: Case) -> str:
    return f"oracle-{case.image}"


def _image_config(case: Case) -> dict[str, Any]:
    return ENVIRONMENT | (cases.IMAGE if case.image == "full" else images.busybox().config)


@pytest.fixture(scope="module")
def oracle(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """A containerd 2.x built from its module, with the images pulled and the paths that pods mount made."""
    if shutil.which("runc") is None:
        pytest.skip("runc is not installed")
    binary = build("containerd")["containerd"]
    pusher = images.Pusher(registry)
    pusher.image("oracle-plain", "oracle", images.busybox())
    pusher.image("oracle-full", "oracle", images.busybox(**cases.IMAGE))
    scratch = tmp_path_factory.mktemp("oracle")
    with _mounted(scratch), Containerd(registry, str(binary), str(binary.parent), number=98, more=SPECIAL) as peer:
        for name in ("pause:1", "oracle-plain:oracle", "oracle-full:oracle"):
            image = cri.ImageSpec(image=f"{registry}/{name}")
            peer.image_service().PullImage(cri.PullImageRequest(image=image), timeout=120)
        yield Oracle(peer, scratch, facts.collect(LinuxHost()))


@contextmanager
def _mounted(scratch: Path) -> Iterator[None]:
    """Make the host paths that the pods mount: a volume, a symlink to it, a file, a profile, a shared mount."""
    shared = scratch / "shared"
    for directory in (scratch / "volume", shared):
        directory.mkdir()
    (scratch / "link").symlink_to("volume")
    (scratch / "hosts").write_text("127.0.0.1 localhost\n")
    (scratch / "profile.json").write_text(json.dumps(PROFILE))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(shared)], check=True, timeout=10)
    try:
        subprocess.run(["mount", "--make-rshared", str(shared)], check=True, timeout=10)
        yield
    finally:
        subprocess.run(["umount", str(shared)], check=True, timeout=10)


NAMES = [case.name for case in cases.cases(Path("/nowhere"))]


@pytest.mark.parametrize("name", NAMES)
def test_only_listed_differences(oracle: Oracle, name: str) -> None:
    """For each pod, every field in which our spec differs from containerd's stands in the list with its reason."""
    case = next(case for case in cases.cases(oracle.scratch) if case.name == name)
    found = compare.unlisted(oracle.compare(case), compare.load())
    assert not found, "\n".join(["not in tests/oracle/differences.toml:", *map(str, found)])


def test_no_stale_entries(oracle: Oracle) -> None:
    """Every entry of the list is needed by a pod."""
    listed = compare.load()
    for case in cases.cases(oracle.scratch):
        compare.unlisted(oracle.compare(case), listed)
    stale = [entry.path for entry in listed if not entry.seen]
    assert not stale, f"no pod shows {stale} any more: {os.fspath(compare.LIST)}"
