"""The config.json that Bulkhead writes against containerd 2.x's for the same request, field by field."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1.api_pb2_grpc import RuntimeServiceStub
from conformance.build import build
from oracle import cases, compare
from oracle.cases import Case
from oracle.compare import Difference
from sandbox_svc.oci import bpf
from support import images
from support.containerd import Containerd
from support.leaks import Host, cgroups_named
from support.stack import Stack

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: A handler with what can be set on one; the words are the same in both configurations, under tables of either version.
SPECIAL = """
[{table}.containerd.runtimes.special]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["pod.example/*", "io.kubernetes.cri.*"]
container_annotations = ["container.example/?", "io.kubernetes.cri.*"]
privileged_without_host_devices = true
privileged_without_host_devices_all_devices_allowed = true
[{table}.containerd.runtimes.special.options]
BinaryName = "/usr/sbin/runc"
"""

#: Devices with every kind of edit that this machine's runtimes know.
CDI = {
    "cdiVersion": "0.7.0",
    "kind": "oracle.test/dev",
    "containerEdits": {"env": ["ORACLE=1", "PATH=/oracle:/bin"], "additionalGids": [4444, 0, 5555]},
    "devices": [
        {
            "name": "zero",
            "containerEdits": {
                "deviceNodes": [{"path": "/dev/vendor-zero", "hostPath": "/dev/zero", "permissions": "r"}],
                "mounts": [{"hostPath": "/usr/share", "containerPath": "/vendor/share", "options": ["rbind", "ro"]}],
            },
        },
        {
            "name": "full",
            "containerEdits": {
                "env": ["FULL=yes"],
                "deviceNodes": [{"path": "/dev/full", "uid": 7, "gid": 0}, {"path": "/dev/null"}],
                "mounts": [{"hostPath": "tmpfs", "containerPath": "/vendor", "type": "tmpfs", "options": ["ro"]}],
                "hooks": [{"hookName": "createRuntime", "path": "/bin/cat", "args": ["cat"], "timeout": 60}],
            },
        },
    ],
}
CLASSES = """
[plugins."io.containerd.service.v1.tasks-service"]
blockio_config_file = "{path}"
"""
BLOCKIO = """
Classes:
  slow:
  - Devices: [{disk}]
    ThrottleReadBps: 50M
    ThrottleWriteBps: 1.5Mi
    ThrottleReadIOPS: 10k
    ThrottleWriteIOPS: 5k
  light:
  - Devices: [{disk}]
    ThrottleWriteBps: 1G
"""
#: Shows a program a kernel with AppArmor, in a mount namespace of its own.
APPARMOR = """set -e
mount -t tmpfs tmpfs /sys/module && mkdir -p /sys/module/apparmor/parameters
echo Y > /sys/module/apparmor/parameters/enabled
mount -t tmpfs tmpfs /sys/kernel/security && mkdir /sys/kernel/security/apparmor
printf 'cri-containerd.apparmor.d (enforce)\\nmine (enforce)\\n' > /sys/kernel/security/apparmor/profiles
mkdir -p "$0/parser" && ln -sf /bin/false "$0/parser/apparmor_parser"
mount -t overlay overlay -o "lowerdir=$0/parser:/usr/sbin" /usr/sbin
exec "$@"
"""

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
class Runtime:
    """One of the two: where to ask, and where it keeps what stands in a spec."""

    stub: RuntimeServiceStub
    #: Directories, in which {id} stands for a pod's or container's: bundles, pod files, shared memory, volumes, netns.
    bundles: str
    pod_files: str
    shm: str
    volumes: str
    netns: str

    def specs(self, case: Case) -> dict[str, Any]:
        """Run a case's pod and containers, and return their specs by subject, with every own name replaced."""
        config = cri.PodSandboxConfig.FromString(case.pod.SerializeToString())
        pod = self.stub.RunPodSandbox(
            cri.RunPodSandboxRequest(config=config, runtime_handler=case.handler), timeout=60
        ).pod_sandbox_id
        try:
            ids = {"": pod}
            for name, wanted in case.containers.items():
                ids[name] = self._start(case, wanted, name, config, ids)
            raw = {name: self._spec(ident, case.started or not name) for name, ident in ids.items()}
            names = self._names(ids, raw[""])
            return {f"{case.name}/{name}".rstrip("/"): _renamed(spec, names) for name, spec in raw.items()}
        finally:
            self.stub.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
            self.stub.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=60)

    def _start(
        self, case: Case, wanted: cri.ContainerConfig, name: str, pod: cri.PodSandboxConfig, ids: dict[str, str]
    ) -> str:
        config = cri.ContainerConfig.FromString(wanted.SerializeToString())
        config.metadata.name = name
        options = config.linux.security_context.namespace_options
        options.target_id = ids[options.target_id] if options.target_id else ""
        created = self.stub.CreateContainer(
            cri.CreateContainerRequest(pod_sandbox_id=ids[""], config=config, sandbox_config=pod), timeout=60
        )
        if case.started:
            self.stub.StartContainer(cri.StartContainerRequest(container_id=created.container_id), timeout=60)
        return str(created.container_id)

    def _spec(self, id: str, started: bool) -> Any:
        """Return the config.json that the OCI runtime was given, or is to be given."""
        if not started:
            request = cri.ContainerStatusRequest(container_id=id, verbose=True)
            return json.loads(self.stub.ContainerStatus(request, timeout=60).info["info"])["runtimeSpec"]
        return json.loads(Path(self.bundles.format(id=id), "config.json").read_text())

    def _names(self, ids: dict[str, str], pause: Any) -> dict[str, str]:
        """Return what stands for what in this runtime's specs: paths, processes, ids; longer ones come first."""
        pod = ids[""]
        found = {
            self.pod_files.format(id=pod): "<pod files>",
            self.shm.format(id=pod): "<shm>",
            f"/proc/{self._pause_pid(pod)}/": "/proc/<pause>/",
        }
        for namespace in pause["linux"]["namespaces"]:
            if namespace["type"] == "network":
                assert namespace["path"].startswith(self.netns.format(id=pod)), namespace
                found[namespace["path"]] = "<netns>"
        for name, ident in ids.items():
            found[ident] = f"<{name or 'pod'}>"
            if name:
                found[self.volumes.format(id=ident)] = f"<volumes of {name}>"
                found[f"/proc/{self._pid(ident)}/"] = f"/proc/<{name}>/"
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))

    def _pause_pid(self, pod: str) -> int:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        return int(json.loads(self.stub.PodSandboxStatus(request, timeout=60).info["info"])["pid"])

    def _pid(self, container: str) -> int:
        request = cri.ContainerStatusRequest(container_id=container, verbose=True)
        return int(json.loads(self.stub.ContainerStatus(request, timeout=60).info["info"])["pid"])


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Return the value with every own name in it replaced."""
    if isinstance(value, dict):
        return {key: _renamed(member, names) for key, member in value.items()}
    if isinstance(value, list):
        return [_renamed(member, names) for member in value]
    if isinstance(value, str):
        for name, role in names.items():
            value = value.replace(name, role)
    return value


@dataclass
class Oracle:
    """Both runtimes, and what was found by comparing them so far."""

    containerd: Runtime
    bulkhead: Runtime
    cases: dict[str, Case]
    found: dict[str, list[Difference]] = field(default_factory=dict)

    def compare(self, name: str) -> list[Difference]:
        """Run a case under both runtimes, once, and return where their specs differ."""
        if name not in self.found:
            theirs, ours = (runtime.specs(self.cases[name]) for runtime in (self.containerd, self.bulkhead))
            self.found[name] = [
                difference
                for subject in theirs
                for difference in compare.differences(subject, theirs[subject], ours[subject])
            ]
        return self.found[name]


@pytest.fixture(scope="module")
def oracle(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """A containerd 2.x built from its module beside a stack of ours, both with runc, and what the pods need."""
    if shutil.which("runc") is None:
        pytest.skip("runc is not installed")
    scratch = tmp_path_factory.mktemp("oracle")
    with ExitStack() as stack:
        stack.enter_context(_prepared(scratch))
        peer, own = stack.enter_context(_both(registry, scratch))
        yield Oracle(_containerd(peer), _bulkhead(own), {c.name: c for c in cases.cases(scratch, registry)})
    left: list[str] = []
    # The last pod's shim has answered and may be on its way out.
    deadline = time.monotonic() + 30
    while (left := _left_by(str(peer.directory), str(own.directory), str(scratch))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@contextmanager
def _both(registry: str, scratch: Path, wrapper: tuple[str, ...] = ()) -> Iterator[tuple[Containerd, Stack]]:
    """Run both with the same options and images; `wrapper` starts each."""
    binary = build("containerd")["containerd"]
    pusher = images.Pusher(registry)
    pusher.image("oracle-plain", "oracle", images.busybox())
    pusher.image("oracle-full", "oracle", images.busybox(**cases.IMAGE))
    runtime = f'cdi_spec_dirs = ["{scratch}/cdi"]'
    classes = CLASSES.format(path=scratch / "blockio.yaml")
    peer = Containerd(
        registry,
        str(binary),
        str(binary.parent),
        number=98,
        runtime=runtime,
        more=_special("io.containerd.grpc.v1.cri") + classes,
        wrapper=wrapper,
    )
    own = Stack(
        registry, number=97, runtime=runtime, more=_special("io.containerd.cri.v1.runtime") + classes, wrapper=wrapper
    )
    with peer, own:
        for service in (peer.image_service(), own.image_service()):
            for name in ("pause:1", "oracle-plain:oracle", "oracle-full:oracle"):
                image = cri.ImageSpec(image=f"{registry}/{name}")
                service.PullImage(cri.PullImageRequest(image=image), timeout=120)
        yield peer, own


def _left_by(*directories: str) -> list[str]:
    """Return mounts and processes that still name one of the directories, and the pods' cgroups."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    processes = Host.look(directories[0]).processes | Host.look(directories[1]).processes
    cgroups = [str(path) for path in _parents()]
    return [line for line in mounts if any(name in line for name in directories)] + sorted(processes) + cgroups


def _parents() -> list[Path]:
    """Return the pods' parent groups that are there."""
    names = {Path(parent).name: parent for parent in cases.CGROUP_PARENTS}
    return [place for name, parent in names.items() for place in cgroups_named(name) if str(place).endswith(parent)]


def _containerd(peer: Containerd) -> Runtime:
    plugin = "io.containerd.grpc.v1.cri"
    return Runtime(
        peer.runtime_service(),
        bundles=f"{peer.directory}/state/io.containerd.runtime.v2.task/k8s.io/{{id}}",
        pod_files=f"{peer.directory}/root/{plugin}/sandboxes/{{id}}",
        shm=f"{peer.directory}/state/{plugin}/sandboxes/{{id}}/shm",
        volumes=f"{peer.directory}/root/{plugin}/containers/{{id}}/volumes",
        netns=f"{peer.directory}/state/{plugin}/netns/cni-",
    )


def _bulkhead(own: Stack) -> Runtime:
    root, state = f"{own.directory}/root/io.bulkhead", f"{own.directory}/state/io.bulkhead"
    return Runtime(
        own.runtime_service(),
        bundles=f"{state}/bundles/{{id}}",
        pod_files=f"{root}/sandboxes/{{id}}",
        shm=f"{state}/shm/{{id}}",
        volumes=f"{root}/containers/{{id}}/volumes",
        netns=f"{state}/netns/cni-{{id}}",
    )


def _special(plugin: str) -> str:
    return SPECIAL.format(table=f'plugins."{plugin}"')


@contextmanager
def _prepared(scratch: Path) -> Iterator[None]:
    """Make the host paths that the pods mount: a volume, a symlink to it, a file, a profile, a shared mount.

    The cgroups that a kubelet would have made for the pods are removed afterwards, as it would.
    """
    shared = scratch / "shared"
    for directory in (scratch / "volume", shared):
        directory.mkdir()
    (scratch / "link").symlink_to("volume")
    (scratch / "hosts").write_text("127.0.0.1 localhost\n")
    (scratch / "profile.json").write_text(json.dumps(PROFILE))
    (scratch / "cdi").mkdir()
    (scratch / "cdi" / "oracle.json").write_text(json.dumps(CDI))
    disks = sorted(str(path) for path in Path("/dev").iterdir() if path.is_block_device() and not path.is_symlink())
    (scratch / "blockio.yaml").write_text(BLOCKIO.format(disk=disks[0]))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(shared)], check=True, timeout=30)
    try:
        subprocess.run(["mount", "--make-rshared", str(shared)], check=True, timeout=30)
        yield
    finally:
        subprocess.run(["umount", str(shared)], check=True, timeout=30)
        for place in _parents():
            with contextlib.suppress(OSError):
                place.rmdir()


NAMES = [case.name for case in cases.cases(Path("/nowhere"), "registry")]


@pytest.mark.parametrize("name", NAMES)
def test_only_listed_differences(oracle: Oracle, name: str) -> None:
    """For each pod, every field in which our spec differs from containerd's stands in the list with its reason."""
    found = compare.unlisted(oracle.compare(name), compare.load())
    assert not found, "\n".join(["not in tests/oracle/differences.toml:", *map(str, found)])


@pytest.mark.skipif(shutil.which("crun") is None, reason="crun is not installed")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("annotations", "privileged-without-devices")])
def test_crun_takes_the_same_specs(oracle: Oracle, name: str) -> None:
    """Every pod runs with crun too, its spec differing from runc's in nothing but the compiled filter."""
    case = oracle.cases[name]
    assert not case.handler, "its handler is one of runc's"
    with_runc, with_crun = (oracle.bulkhead.specs(replace(case, handler=handler)) for handler in ("", "crun"))
    for subject, spec in with_crun.items():
        filtered = "seccomp" in spec["linux"]
        assert (spec["annotations"].pop(bpf.ANNOTATION, None) is not None) is filtered
        assert compare.differences(subject, with_runc[subject], spec) == []


def test_no_stale_entries(oracle: Oracle) -> None:
    """Every entry of the list is needed by a pod."""
    listed = compare.load()
    for name in NAMES:
        compare.unlisted(oracle.compare(name), listed)
    stale = [entry.path for entry in listed if not entry.seen]
    assert not stale, f"no pod shows {stale} any more: {os.fspath(compare.LIST)}"


def test_apparmor(registry: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where the kernel has AppArmor, or says so, every choice of a profile becomes what containerd makes of it."""
    if Path("/sys/module/apparmor").exists():
        pytest.skip("probe: /sys/module/apparmor is there, and the runtimes would ask the kernel for these profiles")
    scratch = tmp_path_factory.mktemp("apparmor")
    with ExitStack() as stack:
        stack.enter_context(_prepared(scratch))
        wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", APPARMOR, str(scratch))
        peer, own = stack.enter_context(_both(registry, scratch, wrapper))
        oracle = Oracle(_containerd(peer), _bulkhead(own), {"apparmor": cases.apparmor(registry)})
        found = compare.unlisted(oracle.compare("apparmor"), compare.load())
        asked = oracle.bulkhead.specs(oracle.cases["apparmor"])
    assert not found, "\n".join(["not in tests/oracle/differences.toml:", *map(str, found)])
    profiles = {subject: spec["process"].get("apparmorProfile") for subject, spec in asked.items()}
    assert set(profiles.values()) == {None, "mine", "cri-containerd.apparmor.d"}
