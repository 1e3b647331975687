"""Root tests run in a network namespace of their own and leave the host as they found it."""

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import images
from support.leaks import Host
from support.registry import registry as run_registry

CLONE_NEWNET = 0x40000000
#: What the scratch directories of stacks and peers begin with.
SCRATCH = "/tmp/bh"


@pytest.fixture(scope="session", autouse=True)
def own_network() -> None:
    """Move the session into an empty network namespace: bridges, ports and packet filter rules stay in it."""
    if os.geteuid() != 0:
        pytest.skip("root tests need root")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=30)


#: Cgroups that a peer makes and keeps: the parent that containerd gives to pods without one.
PEERS_CGROUPS = ("k8s.io",)


@pytest.fixture(scope="session", autouse=True)
def nothing_left(own_network: None) -> Iterator[None]:
    """Fail the session if, after its last test, a mount, a namespace, a cgroup or a process is there that was not.

    Links and packet filter rules are in the session's own network namespace and go with it.
    """
    before = Host.look(SCRATCH)
    yield
    left: dict[str, list[str]] = {}
    # What is removed behind an answer gets its moment; containerd 1.6's shim stays for up to 15 s, in which it offers
    # the events of its last container to an address where a test had nobody listen.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = before.left_by(Host.look(SCRATCH))
        left["cgroups"] = [path for path in left.get("cgroups", []) if not set(path.split("/")) & set(PEERS_CGROUPS)]
        left = {kind: items for kind, items in left.items() if items and kind not in ("links", "rules")}
        if not left:
            return
        time.sleep(0.2)
    assert left == {}


@pytest.fixture(scope="session")
def registry(own_network: None) -> Iterator[str]:
    """Debian's docker-registry, holding pause:1 and busybox:1 to busybox:3 (gzip, zstd, Docker schema 2)."""
    with tempfile.TemporaryDirectory(prefix="bhreg") as directory, run_registry(Path(directory)) as address:
        pusher = images.Pusher(address)
        pusher.image("pause", "1", images.pause())
        box = images.busybox()
        arm = images.busybox()
        arm.architecture = "arm64"
        pusher.index("busybox", "1", [arm, box])
        box.compression = "zstd"
        pusher.image("busybox", "2", box)
        box.compression, box.family = "gzip", "docker"
        pusher.image("busybox", "3", box)
        yield address


@pytest.fixture
def leak_check() -> Iterator[None]:
    """Fail the test if it left a mount, namespace, link, cgroup, packet filter rule or process."""
    before = Host.look(SCRATCH)
    yield
    left: dict[str, list[str]] = {}
    # A process that was killed or has answered is there for a moment more.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = before.left_by(Host.look(SCRATCH))
        # The bridge and its two masquerade jumps belong to the CNI plugins' host side, which no DEL removes.
        left["links"] = [name for name in left.get("links", []) if not name.startswith("bh")]
        left = {kind: items for kind, items in left.items() if items}
        if not left:
            return
        time.sleep(0.1)
    assert left == {}
