"""Statistics and control groups on this host's real hierarchies."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulkhead import command
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup, cgroup_moves, links, netns
from sandbox_svc.cni import AddResult, NetworkResult
from sandbox_svc.stats import Collector, ContainerSource, PodSource

pytestmark = pytest.mark.root


UNIFIED = cgroup.ROOT / "unified"


@dataclass(frozen=True)
class Group:
    """A group of the test's own, and the root of the hierarchies it is in."""

    path: str
    root: Path

    def processes(self) -> set[int]:
        return cgroup.processes(self.path, self.root)


@pytest.fixture(params=[cgroup.ROOT, UNIFIED], ids=["host", "unified"])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A group in the host's hierarchies, and one in the version 2 tree of a hybrid host."""
    root = request.param
    if root == UNIFIED and cgroup.mode() != "hybrid":
        pytest.skip("the host is not hybrid")
    path = f"/bulkhead-test-{os.getpid()}"
    try:
        cgroup.create(f"{path}/container", root)
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    yield Group(path, root)
    assert cgroup.kill(path, root=root)
    cgroup.remove(path, root)
    assert cgroup.directories(path, root) == []


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory for pinned namespaces."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-netns-") as scratch:
        yield Path(scratch)
        for path in Path(scratch).iterdir():
            netns.remove(path)


def start_in(group: Group, script: str) -> subprocess.Popen[bytes]:
    """Start a shell script inside the group's child `container`, in every hierarchy."""
    directories = cgroup.directories(f"{group.path}/container", group.root)
    joins = "".join(f"echo $$ > {path}/cgroup.procs; " for path in directories)
    return subprocess.Popen(["sh", "-c", joins + script])


def wait_for_processes(group: Group, count: int) -> set[int]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = group.processes()
        if len(found) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{group} has only {group.processes()}")


def test_a_busy_container_shows_up(group: Group) -> None:
    """Processor time of real processes is counted, in container and pod; so are memory and processes where they can."""
    collector = Collector(period=0.1, layer_period=10, root=group.root)
    container = ContainerSource("c", f"{group.path}/container", cri.ContainerAttributes(id="c"))
    pod = PodSource("p", group.path, cri.PodSandboxAttributes(id="p"), containers=[container])
    child = start_in(group, f"exec {sys.executable} -c 'data = bytearray(20 << 20)\nwhile True: pass'")
    try:
        wait_for_processes(group, 1)
        collector.pod_stats(pod)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.5)
            stats = collector.pod_stats(pod).linux
            [one] = stats.containers
            # Its interpreter has begun and has its memory.
            if one.cpu.usage_core_nano_seconds.value > 50_000_000 and (
                group.root != cgroup.ROOT or one.memory.usage_bytes.value > 20 << 20
            ):
                break
    finally:
        child.kill()
        child.wait()
    assert one.cpu.usage_core_nano_seconds.value > 50_000_000
    assert 50_000_000 < one.cpu.usage_nano_cores.value < 2_000_000_000
    assert stats.cpu.usage_core_nano_seconds.value >= one.cpu.usage_core_nano_seconds.value
    if group.root == cgroup.ROOT:
        assert one.memory.usage_bytes.value > 20 << 20
        assert stats.process.process_count.value == 1
    elif (UNIFIED / "cpu.pressure").exists():
        assert one.cpu.HasField("psi")
    collector.close()


def test_kill_leaves_no_process_behind(group: Group) -> None:
    """A group that forks without pause and ignores signals is empty after kill."""
    child = start_in(group, "trap '' TERM; while :; do sleep 30 & sleep 0.01; done")
    wait_for_processes(group, 4)
    assert cgroup.kill(group.path, root=group.root)
    assert group.processes() == set()
    assert child.wait(timeout=30) == -signal.SIGKILL


def test_kill_finds_stopped_processes(group: Group) -> None:
    """A stopped process dies, too."""
    child = start_in(group, "kill -STOP $$; sleep 30")
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert cgroup.kill(group.path, root=group.root)
    child.wait(timeout=30)


def test_traffic_of_a_namespace_is_counted(pins: Path) -> None:
    """Interfaces of a pod are listed with what went through them; one that is gone has no numbers."""
    path = pins / "cni-pod"
    netns.create(path)
    inside = ["nsenter", f"--net={path}", "ip"]
    for arguments in (
        ["link", "add", "eth0", "type", "veth", "peer", "name", "peer0"],
        ["link", "set", "peer0", "up"],
        ["link", "set", "eth0", "up"],
        ["addr", "add", "10.77.0.2/24", "dev", "eth0"],
    ):
        assert command.run([*inside, *arguments], timeout=30).returncode == 0
    collector = Collector(period=1, layer_period=10)
    pods = [
        PodSource(name, "", cri.PodSandboxAttributes(id=name), str(pins / name)) for name in ("cni-pod", "cni-gone")
    ]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        here, gone = collector.list_pod_stats(pods)
        if here.linux.network.default_interface.tx_bytes.value:
            break
        time.sleep(0.01)
    assert here.linux.network.default_interface.name == "eth0"
    assert here.linux.network.default_interface.tx_bytes.value > 0
    assert {interface.name for interface in here.linux.network.interfaces} == {"eth0", "peer0"}
    assert not gone.linux.HasField("network")
    assert {link.name: link.addresses for link in links.read(path)}["eth0"] == ("10.77.0.2/24",)
    result = NetworkResult("eth0", {"name": "n"}, {"ips": [{"address": "10.77.0.2/24"}, {"address": "10.77.0.3/24"}]})
    missing = links.missing(path, AddResult((result, NetworkResult("eth1", {"name": "m"}))))
    assert missing == ["address 10.77.0.3 of interface eth0 is gone", 'interface eth1 of network "m" is gone']
    assert "is gone" in links.missing(pins / "cni-gone", AddResult())[0]


def test_namespaces_are_made_and_owned(pins: Path) -> None:
    """Namespaces have their loopback up; an owned one belongs to a mapped user namespace; no trace stays."""
    netns.create(pins / "cni-a")
    netns.create(pins / "cni-a")
    mapping = [netns.IdMapping(0, 100000, 65536)]
    netns.create_owned(pins / "cni-b", mapping, mapping, pins / "user-b")
    for name in ("cni-a", "cni-b"):
        assert netns.is_namespace(pins / name)
        shown = command.run(["nsenter", f"--net={pins / name}", "ip", "addr", "show", "lo"], timeout=30).stdout.decode()
        assert "127.0.0.1/8" in shown
        assert "::1/128" in shown
    shown = command.run(
        ["nsenter", f"--user={pins / 'user-b'}", "cat", "/proc/self/uid_map"], timeout=30
    ).stdout.decode()
    assert shown.split() == ["0", "100000", "65536"]
    for path in list(pins.iterdir()):
        netns.remove(path)
        netns.remove(path)
    assert str(pins / "cni") not in Path("/proc/self/mountinfo").read_text()


def test_removing_reaches_other_mount_namespaces(pins: Path) -> None:
    """A copy of a pin in another mount namespace, which would keep the pod's network alive, goes with it."""
    netns.create(pins / "cni-a")
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "cat"], stdin=subprocess.PIPE) as other:
        try:
            mounts = Path(f"/proc/{other.pid}/mountinfo")
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if os.readlink(f"/proc/{other.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
                    break
                time.sleep(0.01)
            assert str(pins / "cni-a") in mounts.read_text()
            netns.remove(pins / "cni-a")
            assert str(pins / "cni-a") not in mounts.read_text()
        finally:
            other.kill()


def test_being_ready_for_moves_moves_nothing() -> None:
    """The write that keeps the kernel ready is taken by the host's hierarchies and leaves this process where it is."""
    before = Path("/proc/self/cgroup").read_text()
    readiness = cgroup_moves.Readiness()
    with readiness.kept():
        time.sleep(0.05)
        assert any(thread.name == "cgroup-moves" for thread in threading.enumerate())
    assert Path("/proc/self/cgroup").read_text() == before
