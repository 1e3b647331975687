"""What runs inside the machine: it is thrown away afterwards, so nothing here needs namespaces or clean-up."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import images
from support.crictl import Crictl
from support.registry import registry as run_registry
from vm import units


@pytest.fixture(scope="session", autouse=True)
def in_machine() -> None:
    """Skip everything elsewhere: the tests start units and make groups at the root of the hierarchy."""
    if Path("/proc/sys/kernel/hostname").read_text().strip() != "bulkhead-vm":
        pytest.skip("runs in the virtual machine only: make vm-test")


@pytest.fixture(scope="session")
def registry(in_machine: None) -> Iterator[str]:
    """A registry with pause:1 and busybox:1."""
    with tempfile.TemporaryDirectory(prefix="bhreg") as directory, run_registry(Path(directory)) as address:
        pusher = images.Pusher(address)
        pusher.image("pause", "1", images.pause())
        pusher.image("busybox", "1", images.busybox())
        yield address


@pytest.fixture(scope="session")
def crictl(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crictl]:
    """The units, installed and running, with an image pulled."""
    units.install(registry)
    units.systemctl("restart", "bulkhead.target", timeout=300)
    made = Crictl("/run/bulkhead/cri.sock", tmp_path_factory.mktemp("crictl"))
    units.wait_answering(made)
    made("pull", f"{registry}/busybox:1")
    yield made
    units.systemctl("start", "bulkhead.target", timeout=300)
    units.wait_answering(made)
    made("rmp", "-f", "-a")
    units.systemctl("stop", "bulkhead.target", "bulkhead-shims.service")
