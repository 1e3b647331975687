"""The spec that every container starts from before its request is applied.

It is what containerd starts from too (pkg/oci populateDefaultUnixSpec), so that a pod moved between the runtimes finds
the same /proc, /dev and namespaces. Optional members that would be empty are left out, as Go's encoder does.
"""

import json

from bulkhead.errors import InvalidArgument
from sandbox_svc.oci.model import HostFacts, Json, RuntimeFacts

#: The namespace below which containerd's CRI plugin, and so we, keep pods: part of the cgroup path without a parent.
NAMESPACE = "k8s.io"

#: The rootfs below the bundle: where the shim mounts the snapshot.
ROOTFS = "rootfs"

ALL_ACCESS = "rwm"

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")

#: destination, type, source, options
_MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108 (in the container)
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)


def default_spec(id: str, facts: HostFacts, runtime: RuntimeFacts) -> Json:
    """Return the spec of a container about which nothing is known but its id.

    It has no /run of its own: an image's /run is used as it is, as the CRI always had it.
    """
    return {
        "ociVersion": runtime.oci_version,
        "root": {"path": ROOTFS},
        "process": {
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": {name: list(DEFAULT_CAPABILITIES) for name in ("bounding", "effective", "permitted")},
        },
        "mounts": [
            {"destination": destination, "type": type_, "source": source, "options": list(options)}
            for destination, type_, source, options in _MOUNTS
        ],
        "linux": {
            "maskedPaths": [*MASKED_PATHS, *facts.host.thermal_throttle_paths()],
            "readonlyPaths": list(READONLY_PATHS),
            "cgroupsPath": f"/{NAMESPACE}/{id}",
            "resources": {"devices": [{"allow": False, "access": ALL_ACCESS}]},
            "namespaces": [{"type": name} for name in _NAMESPACES],
        },
        "annotations": {},
    }


def base_runtime_spec(path: str, id: str, facts: HostFacts, runtime: RuntimeFacts) -> Json:
    """Return the handler's base_runtime_spec with our cgroup path and the version that the runtime reads.

    Its rlimits, seccomp and AppArmor stay, which is what the option is for; a mount of /run is dropped, as by default.
    Raises InvalidArgument, naming the file, when it is not a JSON object.
    """
    try:
        spec = json.loads(facts.host.read(path))
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"base_runtime_spec {path}: {error}") from error
    if not isinstance(spec, dict):
        raise InvalidArgument(f"base_runtime_spec {path}: want a JSON object, got {type(spec).__name__}")
    for member in ("root", "process", "linux", "annotations"):
        spec[member] = spec.get(member) or {}
    spec["mounts"] = [mount for mount in spec.get("mounts") or [] if mount.get("destination") != "/run"]
    linux = spec["linux"]
    for member, empty in (("namespaces", []), ("resources", {})):
        linux[member] = linux.get(member) or empty
    linux["cgroupsPath"] = f"/{NAMESPACE}/{id}"
    spec["process"].setdefault("user", {"uid": 0, "gid": 0})
    spec["process"].setdefault("cwd", "/")
    spec["process"]["capabilities"] = spec["process"].get("capabilities") or {}
    spec["ociVersion"] = runtime.oci_version
    return spec
