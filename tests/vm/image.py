"""The disk with Debian on it: bookworm with systemd, a cloud kernel, and the packages that `scripts/setup test` wants.

It is made once for each list of packages, in tests/vm/.cache/debian-<digest>/: `rootfs/` (the directory, in which the
payload's Python environment is made as well), `root.ext4`, `vmlinuz` and `initrd.img`. Needs root, mmdebstrap,
e2fsprogs and Debian's mirror as this host's apt knows it.
"""

import fcntl
import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(__file__).parent / ".cache"
SUITE = "bookworm"
TIMEOUT = 1800

_SYSTEM = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "python3",
    "python3-venv",
    "procps",
    "iputils-ping",
)

#: Files of the image; the agent itself is on the payload's disk, so that a change of it needs no new image.
_FILES = {
    "etc/hostname": "bulkhead-vm\n",
    "etc/hosts": "127.0.0.1 localhost bulkhead-vm\n::1 localhost\n",
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 0\nLABEL=payload /payload ext4 defaults,noatime 0 0\n",
    "etc/systemd/journald.conf.d/vm.conf": "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n",
    "etc/systemd/system/agent.service": """[Unit]
Description=Runs what the host asks for
RequiresMountsFor=/payload
After=basic.target
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/python3 /payload/agent.py
Restart=always
# What a command starts goes on after the agent's death, and its out-of-memory kills are its own affair.
KillMode=process
OOMPolicy=continue
Delegate=yes
TasksMax=infinity
[Install]
WantedBy=multi-user.target
""",
    # Two modules are all it takes to mount the disk; the usual choice takes a minute to unpack under emulation.
    "etc/initramfs-tools/initramfs.conf": "MODULES=list\nBUSYBOX=auto\nCOMPRESS=zstd\nFSTYPE=ext4\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\n",
}

#: Units that only cost time, and services of test tools that tests start by themselves.
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "containerd.service",
    "systemd-networkd-wait-online.service",
    "docker-registry.service",
    "getty.target",
    "systemd-update-utmp.service",
    "nftables.service",
)


@dataclass(frozen=True)
class Image:
    """A finished image."""

    directory: Path

    @property
    def rootfs(self) -> Path:
        """The directory that the disk was made of."""
        return self.directory / "rootfs"

    @property
    def disk(self) -> Path:
        """The disk, an ext4 without a partition table."""
        return self.directory / "root.ext4"


def packages() -> list[str]:
    """Return what is installed: the machine's own needs, and both lists of scripts/setup."""
    setup = (REPOSITORY / "scripts" / "setup").read_text()
    lists = re.findall(r"^(?:run|test)_packages=\(([^)]*)\)", setup, re.MULTILINE)
    assert len(lists) == 2, "scripts/setup has changed its lists"
    return sorted({*_SYSTEM, *" ".join(lists).split()})


def image() -> Image:
    """Return the image, made now if it is missing or its list of packages has changed.

    Raises subprocess.CalledProcessError when a step fails.
    """
    recipe = repr((SUITE, packages(), sorted(_FILES.items()), _MASKED))
    found = Image(CACHE / f"debian-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}")
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (found.directory / "complete").exists():
            shutil.rmtree(found.directory, ignore_errors=True)
            found.directory.mkdir()
            _install(found)
            _configure(found)
            _finish(found)
            (found.directory / "complete").touch()
    return found


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)


def _install(target: Image) -> None:
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    _run(
        *("nice", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(packages())}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")),
        '--aptopt=Acquire::Languages "none"',
        *(SUITE, target.rootfs),
        *([sources] if sources.exists() else []),
    )


def _configure(target: Image) -> None:
    for name, text in _FILES.items():
        path = target.rootfs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    units = target.rootfs / "etc/systemd/system"
    for unit in _MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "agent.service").symlink_to("../agent.service")
    (target.rootfs / "payload").mkdir()
    (target.rootfs / "usr/lib/bulkhead").mkdir()
    (target.rootfs / "etc/machine-id").write_text("uninitialized\n")


def _finish(target: Image) -> None:
    _run("chroot", target.rootfs, "update-initramfs", "-u")
    (kernel,) = target.rootfs.glob("boot/vmlinuz-*")
    (initrd,) = target.rootfs.glob("boot/initrd.img-*")
    shutil.copy(kernel, target.directory / "vmlinuz")
    shutil.copy(initrd, target.directory / "initrd.img")
    make_disk(target.rootfs, target.disk, "root", 4096)


def make_disk(source: Path, disk: Path, label: str, free: int) -> None:
    """Make a sparse ext4 image of a directory's content with `free` MiB to spare."""
    used = subprocess.run(["du", "-sm", str(source)], check=True, capture_output=True, text=True, timeout=TIMEOUT)
    size = int(used.stdout.split()[0]) * 11 // 10 + free
    disk.unlink(missing_ok=True)
    _run("mke2fs", "-q", "-t", "ext4", "-L", label, "-d", source, disk, f"{size}M")
