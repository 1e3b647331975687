"""The pods whose specs are compared: each exercises one part of the CRI, as a kubelet would ask for it.

Every container must run on the test machine, for the runtime must have accepted the spec that containerd wrote.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bulkhead.proto.runtime.v1 import api_pb2 as cri

#: The image configuration of the test image, which says everything that an image can say.
IMAGE: dict[str, Any] = {
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["sleep 300"],
    "Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=1", "BOTH=image"],
    "WorkingDir": "/var/www",
    "User": "www",
    "Volumes": {"/data": {}, "/var/lib/state": {}},
    "Labels": {"org.example": "label", "io.kubernetes.cri.container-type": "sandbox"},
}

#: What a kubelet masks and protects (pkg/securitycontext, ProcMount Default).
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


#: The pods' cgroups, which a kubelet makes and removes; parents stand behind their children.
CGROUP_PARENTS = ("/bulkhead-oracle/kubelet", "/bulkhead-oracle/resources", "/bulkhead-oracle")


@dataclass
class Case:
    """One pod with its containers."""

    name: str
    pod: cri.PodSandboxConfig
    containers: dict[str, cri.ContainerConfig] = field(default_factory=dict)
    #: "plain" is busybox with nothing but a Cmd, "full" the image of `IMAGE`.
    image: str = "plain"
    handler: str = ""
    #: False for containers that this machine cannot run: their specs are compared when they have been created.
    started: bool = True


def cases(scratch: Path, registry: str) -> list[Case]:
    """Return all pods; the caller makes below scratch what they mount, and pushes their images to the registry."""
    found = [build(scratch) for build in _BUILDERS]
    for case in found:
        for config in case.containers.values():
            config.image.image = f"{registry}/oracle-{case.image}:oracle"
    return found


def apparmor(registry: str) -> Case:
    """Return a pod that chooses every kind of AppArmor profile, by the new field and by the old one.

    Both runtimes must be told that there is AppArmor, with the profile `mine` loaded.
    """
    case = _case("apparmor", container())
    case.started = False
    case.pod.linux.security_context.privileged = True
    new = cri.SecurityProfile
    for name, wanted in (
        ("default", new(profile_type=new.RuntimeDefault)),
        ("unconfined", new(profile_type=new.Unconfined)),
        ("localhost", new(profile_type=new.Localhost, localhost_ref="mine")),
        ("localhost-prefixed", new(profile_type=new.Localhost, localhost_ref="localhost/mine")),
    ):
        case.containers.setdefault(name, container()).linux.security_context.apparmor.CopyFrom(wanted)
        privileged = case.containers.setdefault(f"privileged-{name}", container()).linux.security_context
        privileged.privileged = True
        privileged.apparmor.CopyFrom(wanted)
    for name, old in (("old-default", "runtime/default"), ("old-none", "unconfined"), ("old-own", "localhost/mine")):
        case.containers.setdefault(name, container()).linux.security_context.apparmor_profile = old
    for config in case.containers.values():
        config.image.image = f"{registry}/oracle-{case.image}:oracle"
    return case


def _plain(_scratch: Path) -> Case:
    """Ask for as little as one may."""
    return _case("plain", container())


def _kubelet(scratch: Path) -> Case:
    """Ask for what every kubelet asks for."""
    config = container(command=["sleep"], args=["300"], envs={"A": "1", "B": "x=y"}, log_path="c/0.log")
    config.labels["io.kubernetes.container.name"] = "c"
    config.annotations["io.kubernetes.container.hash"] = "1"
    context = config.linux.security_context
    context.masked_paths.extend(MASKED)
    context.readonly_paths.extend(READONLY)
    context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    context.namespace_options.pid = cri.CONTAINER
    config.linux.resources.cpu_shares = 102
    config.linux.resources.oom_score_adj = 999
    case = _case("kubelet", config)
    case.pod.hostname = "kubelet-pod"
    case.pod.log_directory = str(scratch / "logs")
    case.pod.dns_config.servers.append("10.0.0.10")
    case.pod.linux.cgroup_parent = CGROUP_PARENTS[0]
    case.pod.linux.security_context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    case.pod.linux.resources.cpu_shares = 102
    case.pod.linux.resources.cpu_period = 100000
    case.pod.linux.resources.memory_limit_in_bytes = 1 << 26
    return case


def _image(_scratch: Path) -> Case:
    """Take command, environment, directory, user and volumes from the image, and override the environment."""
    case = _case("image", container(command=[], envs={"BOTH": "request", "FROM_REQUEST": "1"}))
    case.image, case.pod.hostname = "full", "oracle"
    return case


def _image_overridden(_scratch: Path) -> Case:
    """Override what the image says."""
    config = container(command=["/bin/sleep"], args=["300"], working_dir="/tmp")
    config.linux.security_context.run_as_user.value = 0
    case = _case("image-overridden", config)
    case.image = "full"
    return case


def _host_namespaces(_scratch: Path) -> Case:
    """Share the node's network, PIDs and IPC."""
    case = _case("host-namespaces", container())
    for options in _namespace_options(case):
        options.network = options.pid = options.ipc = cri.NODE
    return case


def _pod_pid(_scratch: Path) -> Case:
    """Share the pod's PID namespace in one container, join that container from another."""
    case = _case("pod-pid", container())
    case.containers["debugger"] = container()
    debugger = case.containers["debugger"].linux.security_context.namespace_options
    debugger.pid, debugger.target_id = cri.TARGET, "c"
    return case


def _privileged(_scratch: Path) -> Case:
    """Run a privileged container, and one that is not, in a privileged pod."""
    case = _case("privileged", container())
    case.containers["not"] = container()
    case.pod.linux.security_context.privileged = True
    context = case.containers["c"].linux.security_context
    context.privileged = True
    context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    context.masked_paths.extend(MASKED)
    return case


def _privileged_without_devices(_scratch: Path) -> Case:
    """Run a privileged container under a handler that keeps the node's devices back."""
    case = _case("privileged-without-devices", container())
    case.pod.linux.security_context.privileged = True
    case.containers["c"].linux.security_context.privileged = True
    case.handler = "special"
    return case


def _capabilities(_scratch: Path) -> Case:
    """Add and drop capabilities, and let the default seccomp profile follow them."""
    wishes = {
        "add": (["NET_ADMIN", "sys_time"], []),
        "drop": ([], ["CHOWN", "MKNOD"]),
        "all": (["ALL"], ["SYS_ADMIN"]),
        "none": ([], ["ALL"]),
        "one": (["NET_BIND_SERVICE"], ["ALL"]),
    }
    case = _case("capabilities", container())
    for name, (add, drop) in wishes.items():
        config = case.containers[name] = container()
        context = config.linux.security_context
        context.capabilities.add_capabilities.extend(add)
        context.capabilities.drop_capabilities.extend(drop)
        context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    return case


def _paths(_scratch: Path) -> Case:
    """Mask and protect other paths than usual, with a read-only rootfs and no new privileges."""
    config = container()
    context = config.linux.security_context
    context.masked_paths.extend(["/proc/keys", "/sys/firmware"])
    context.readonly_paths.append("/proc/sys")
    context.readonly_rootfs = True
    context.no_new_privs = True
    return _case("paths", config)


def _users(_scratch: Path) -> Case:
    """Name users in every form, with groups merged and not."""
    case = _case("users", container())
    case.pod.linux.security_context.run_as_user.value = 1234
    case.pod.linux.security_context.run_as_group.value = 2345
    case.pod.linux.security_context.supplemental_groups.append(777)
    for name, uid, gid, username in (
        ("uid", 33, None, ""),
        ("uid-gid", 1000, 2000, ""),
        ("name", None, None, "www"),
        ("name-gid", None, 4000, "www"),
        ("root", 0, None, ""),
    ):
        context = case.containers.setdefault(name, container()).linux.security_context
        if uid is not None:
            context.run_as_user.value = uid
        if gid is not None:
            context.run_as_group.value = gid
        context.run_as_username = username
        context.supplemental_groups.extend([5001, 10])
    strict = copy.deepcopy(case.containers["name"])
    strict.linux.security_context.supplemental_groups_policy = cri.Strict
    case.containers["strict"] = strict
    case.containers["strict-nobody"] = container()
    context = case.containers["strict-nobody"].linux.security_context
    context.supplemental_groups_policy = cri.Strict
    context.supplemental_groups.append(6000)
    return case


def _sysctls(_scratch: Path) -> Case:
    """Set sysctls of the network and the IPC namespace, one of them a default of ours."""
    case = _case("sysctls", container())
    case.pod.linux.sysctls.update(
        {"net.ipv4.ip_unprivileged_port_start": "1024", "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
    )
    return case


def _devices(_scratch: Path) -> Case:
    """Add device nodes: one as it is, one renamed, a symlink, and a directory of them."""
    config = container()
    config.devices.add(host_path="/dev/null", container_path="/dev/null2", permissions="rw")
    config.devices.add(host_path="/dev/zero", container_path="/dev/zero", permissions="rwm")
    config.devices.add(host_path="/dev/net", container_path="/dev/net", permissions="r")
    return _case("devices", config)


def _resources(_scratch: Path) -> Case:
    """Set every limit."""
    config = container()
    limits = config.linux.resources
    limits.cpu_period, limits.cpu_quota, limits.cpu_shares = 100000, 50000, 512
    limits.cpuset_cpus, limits.cpuset_mems = "0", "0"
    limits.memory_limit_in_bytes = 64 << 20
    limits.oom_score_adj = 500
    limits.hugepage_limits.add(page_size="2MB", limit=0)
    case = _case("resources", config)
    swap = case.containers["swap"] = container()
    swap.linux.resources.memory_limit_in_bytes = 32 << 20
    swap.linux.resources.memory_swap_limit_in_bytes = 64 << 20
    case.pod.linux.cgroup_parent = CGROUP_PARENTS[1]
    return case


def _seccomp(scratch: Path) -> Case:
    """Choose every kind of seccomp profile, by the new field and by the old one."""
    case = _case("seccomp", container())
    profile = str(scratch / "profile.json")
    new = cri.SecurityProfile
    for name, wanted in (
        ("default", new(profile_type=new.RuntimeDefault)),
        ("unconfined", new(profile_type=new.Unconfined)),
        ("localhost", new(profile_type=new.Localhost, localhost_ref=profile)),
    ):
        case.containers.setdefault(name, container()).linux.security_context.seccomp.CopyFrom(wanted)
    for name, old in (("old-default", "runtime/default"), ("old-localhost", f"localhost/{profile}")):
        case.containers.setdefault(name, container()).linux.security_context.seccomp_profile_path = old
    case.pod.linux.security_context.seccomp_profile_path = "docker/default"
    return case


def _mounts(scratch: Path) -> Case:
    """Mount a volume in every propagation, over a default mount, over a pod file, deep before shallow."""
    config = container()
    config.mounts.add(container_path="/deep/er/est", host_path=str(scratch / "volume"))
    config.mounts.add(container_path="/deep", host_path=str(scratch / "link"))
    config.mounts.add(container_path="/ro", host_path=str(scratch / "link"), readonly=True)
    config.mounts.add(container_path="/etc/hosts", host_path=str(scratch / "hosts"))
    config.mounts.add(container_path="/dev/mqueue/", host_path=str(scratch / "volume"))
    case = _case("mounts", config)
    for name, propagation in (
        ("slave", cri.PROPAGATION_HOST_TO_CONTAINER),
        ("shared", cri.PROPAGATION_BIDIRECTIONAL),
    ):
        other = case.containers[name] = container()
        other.mounts.add(container_path="/s", host_path=str(scratch / "shared"), propagation=propagation)
        other.mounts.add(container_path="/p", host_path=str(scratch / "volume"))
    both = copy.deepcopy(case.containers["shared"])
    both.mounts.add(
        container_path="/h", host_path=str(scratch / "shared"), propagation=cri.PROPAGATION_HOST_TO_CONTAINER
    )
    case.containers["shared-and-slave"] = both
    return case


def _terminal(_scratch: Path) -> Case:
    """Ask for a terminal."""
    return _case("terminal", container(tty=True, stdin=True, envs={"TERM": "vt100"}))


def _annotations(_scratch: Path) -> Case:
    """Pass annotations through a handler's patterns, and try to forge containerd's own."""
    config = container()
    config.annotations.update({"container.example/a": "1", "container.example/a/b": "2", "other": "3"})
    config.annotations["io.kubernetes.cri.container-type"] = "sandbox"
    case = _case("annotations", config)
    case.pod.annotations.update({"pod.example/a": "1", "pod.examples": "2", "io.kubernetes.cri.sandbox-id": "forged"})
    case.handler = "special"
    return case


def _cdi(_scratch: Path) -> Case:
    """Ask for CDI devices by field, by annotation, by both, and as another user."""
    case = _case("cdi", container(annotations={"cdi.k8s.io/plugin": "oracle.test/dev=full"}))
    case.containers["field"] = container(CDI_devices=[cri.CDIDevice(name="oracle.test/dev=zero")])
    both = case.containers["both"] = container(annotations={"cdi.k8s.io/plugin": "oracle.test/dev=full"})
    for name in ("zero", "full", "zero"):
        both.CDI_devices.add(name=f"oracle.test/dev={name}")
    both.linux.security_context.run_as_user.value = 1000
    both.linux.security_context.run_as_group.value = 2000
    both.linux.security_context.supplemental_groups.append(4444)
    both.devices.add(host_path="/dev/null", container_path="/dev/vendor-zero", permissions="r")
    return case


def _blockio(_scratch: Path) -> Case:
    """Ask for block I/O classes: the pod for all, the pod for one, and one for itself."""
    case = _case("blockio", container())
    case.containers["named"] = container()
    case.containers["own"] = container(annotations={"io.kubernetes.cri.blockio-class": "light"})
    case.containers["none"] = container(annotations={"io.kubernetes.cri.blockio-class": ""})
    prefix = "blockio.resources.beta.kubernetes.io"
    case.pod.annotations.update({f"{prefix}/pod": "slow", f"{prefix}/container.named": "light"})
    return case


_BUILDERS: tuple[Callable[[Path], Case], ...] = (
    _plain,
    _kubelet,
    _image,
    _image_overridden,
    _host_namespaces,
    _pod_pid,
    _privileged,
    _privileged_without_devices,
    _capabilities,
    _paths,
    _users,
    _sysctls,
    _devices,
    _resources,
    _seccomp,
    _mounts,
    _terminal,
    _annotations,
    _cdi,
    _blockio,
)


def container(
    command: list[str] | None = None, envs: dict[str, str] | None = None, **fields: Any
) -> cri.ContainerConfig:
    """Return a container that sleeps."""
    found = cri.ContainerConfig(**fields)
    found.command.extend(["sleep", "300"] if command is None else command)
    for name, value in (envs or {}).items():
        found.envs.add(key=name, value=value.encode())
    return found


def _case(name: str, config: cri.ContainerConfig) -> Case:
    pod = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="oracle", attempt=1)
    )
    return Case(name, pod, {"c": config})


def _namespace_options(case: Case) -> list[cri.NamespaceOption]:
    pod = case.pod.linux.security_context.namespace_options
    return [pod, *(config.linux.security_context.namespace_options for config in case.containers.values())]
