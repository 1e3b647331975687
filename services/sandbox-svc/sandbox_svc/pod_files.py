"""The files every container of a pod is given: hostname, hosts, resolv.conf and /dev/shm."""

import logging
import os
import shutil
from pathlib import Path

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import linux
from sandbox_svc.oci.model import SandboxFiles

logger = logging.getLogger(__name__)

#: As containerd and Docker have it: the size of a pod's /dev/shm.
SHM_OPTIONS = "mode=1777,size=65536k"


def host_network(config: cri.PodSandboxConfig) -> bool:
    """Whether the pod shares the node's network."""
    return config.linux.security_context.namespace_options.network == cri.NODE


def host_ipc(config: cri.PodSandboxConfig) -> bool:
    """Whether the pod shares the node's IPC namespace, and with it its /dev/shm."""
    return config.linux.security_context.namespace_options.ipc == cri.NODE


def resolv_conf(dns: cri.DNSConfig) -> str:
    """Return resolv.conf(5) for a pod's DNS configuration."""
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)


def hostname(config: cri.PodSandboxConfig) -> str:
    """Return the name the pod has: its own, or on the node's network the node's."""
    return config.hostname or os.uname().nodename


def paths(directory: Path, shm: Path, config: cri.PodSandboxConfig) -> SandboxFiles:
    """Return where a pod's files are."""
    return SandboxFiles(
        hostname=str(directory / "hostname"),
        hosts=str(directory / "hosts"),
        resolv_conf=str(directory / "resolv.conf"),
        shm="/dev/shm" if host_ipc(config) else str(shm),  # noqa: S108 # the node's own, by the pod's wish
    )


def write(files: SandboxFiles, config: cri.PodSandboxConfig) -> None:
    """Write the pod's files and mount its /dev/shm; their directory exists."""
    _write(files.hostname, hostname(config) + "\n")
    _copy("/etc/hosts", files.hosts)
    text = resolv_conf(config.dns_config)
    if text:
        _write(files.resolv_conf, text)
    else:
        _copy("/etc/resolv.conf", files.resolv_conf)
    if not host_ipc(config):
        os.makedirs(files.shm, mode=0o700, exist_ok=True)
        flags = linux.MS_NOEXEC | linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("shm", files.shm, "tmpfs", flags, SHM_OPTIONS)


def _write(path: str, text: str) -> None:
    file = Path(path)
    file.write_text(text)
    file.chmod(0o644)


def _copy(source: str, target: str) -> None:
    """Copy a file of the node; one that is missing there becomes an empty one."""
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        logger.warning("%s does not exist on this node: the pod's is empty", source)
        Path(target).write_bytes(b"")
    os.chmod(target, 0o644)  # every user of the container reads it
