"""What sandbox-svc finds out about its host once, at its start."""

import contextlib
import os
import platform
import re
from pathlib import Path

from sandbox_svc import cgroup
from sandbox_svc.oci.model import Host, HostFacts

#: By bit number (linux/capability.h).
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip


def collect(host: Host, restrict_oom_score_adj: bool = False) -> HostFacts:
    """Return the facts of this machine and of our own privileges.

    restrict_oom_score_adj is containerd's option: clamp scores to our own even where they could be lowered.
    """
    held = capabilities(Path("/proc/self/status").read_text())
    return HostFacts(
        host=host,
        cgroup_mode=cgroup.mode(),
        capabilities=held,
        # Lowering a score below its inherited minimum takes CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5)).
        can_lower_oom_score_adj="CAP_SYS_RESOURCE" in held and not restrict_oom_score_adj,
        own_oom_score_adj=int(_text("/proc/self/oom_score_adj") or 0),
        in_user_namespace=_text("/proc/self/uid_map").split() != ["0", "0", "4294967295"],
        apparmor=_apparmor(),
        selinux=Path("/sys/fs/selinux/enforce").exists(),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        hugetlb=_controller("hugetlb"),
        swap_accounting=_swap_accounting(),
        hostname=platform.node(),
        machine=platform.machine(),
        kernel=kernel(platform.release()),
    )


def capabilities(status: str) -> tuple[str, ...]:
    """Return the permitted capabilities of a /proc/<pid>/status text."""
    found = re.search(r"^CapPrm:\s*([0-9a-f]+)$", status, re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return tuple(f"CAP_{name}" for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1)


def kernel(release: str) -> tuple[int, int]:
    """Return major and minor of a kernel release such as 6.1.0-18-amd64."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (4, 8)


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _apparmor() -> bool:
    """AppArmor works for containers where the kernel has it on and its profiles can be loaded."""
    return (
        _text("/sys/module/apparmor/parameters/enabled") == "Y"
        and Path("/sys/kernel/security/apparmor").is_dir()
        and any(os.access(f"{place}/apparmor_parser", os.X_OK) for place in ("/sbin", "/usr/sbin", "/usr/bin"))
    )


def _controller(name: str) -> bool:
    if cgroup.mode() == "v2":
        return name in _text("/sys/fs/cgroup/cgroup.controllers").split()
    return Path(f"/sys/fs/cgroup/{name}").is_dir()


def _swap_accounting() -> bool:
    """Whether the kernel accounts swap to cgroups; on v2 the root cgroup has no such file, its children have."""
    if cgroup.mode() != "v2":
        return Path("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
    own = _text("/proc/self/cgroup").rpartition("::")[2].lstrip("/")
    place = Path("/sys/fs/cgroup") / own
    return (place / "memory.swap.max").exists() or any(Path("/sys/fs/cgroup").glob("*/memory.swap.max"))
