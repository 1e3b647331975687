"""Statistics and control groups on this host's real hierarchies."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead import command
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup, links, netns
from sandbox_svc.cni import AddResult, NetworkResult
from sandbox_svc.stats import Collector, ContainerSource, PodSource

pytestmark = pytest.mark.root


@pytest.fixture
def group() -> Iterator[str]:
    """A group of the test's own, with whatever is left in it killed afterwards."""
    path = f"/bulkhead-test-{os.getpid()}"
    try:
        cgroup.create(f"{path}/container")
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    yield path
    assert cgroup.kill(path)
    cgroup.remove(path)
    assert cgroup.directories(path) == []


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory for pinned namespaces."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-netns-") as scratch:
        yield Path(scratch)
        for path in Path(scratch).iterdir():
            netns.remove(path)


def start_in(group: str, script: str) -> subprocess.Popen[bytes]:
    """Start a shell script inside a group, in every hierarchy."""
    joins = "".join(f"echo $$ > {path}/cgroup.procs; " for path in cgroup.directories(group))
    return subprocess.Popen(["sh", "-c", joins + script])


def wait_for_processes(group: str, count: int) -> set[int]:
    for _ in range(500):
        found = cgroup.processes(group)
        if len(found) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{group} has only {cgroup.processes(group)}")


def test_a_busy_container_shows_up(group: str) -> None:
    """Processor time, memory and number of real processes are counted, in container and pod."""
    collector = Collector(period=0.1, layer_period=10)
    container = ContainerSource("c", f"{group}/container", cri.ContainerAttributes(id="c"))
    pod = PodSource("p", group, cri.PodSandboxAttributes(id="p"), containers=[container])
    child = start_in(container.cgroup, "while :; do :; done")
    try:
        wait_for_processes(container.cgroup, 1)
        collector.pod_stats(pod)
        time.sleep(0.4)
        stats = collector.pod_stats(pod).linux
    finally:
        child.kill()
        child.wait()
    [one] = stats.containers
    assert one.cpu.usage_core_nano_seconds.value > 50_000_000
    assert 50_000_000 < one.cpu.usage_nano_cores.value < 2_000_000_000
    assert stats.cpu.usage_core_nano_seconds.value >= one.cpu.usage_core_nano_seconds.value
    assert one.memory.usage_bytes.value > 0
    assert stats.process.process_count.value == 1
    collector.close()


def test_kill_leaves_no_process_behind(group: str) -> None:
    """A group that forks without pause and ignores signals is empty after kill."""
    child = start_in(f"{group}/container", "trap '' TERM; while :; do sleep 30 & sleep 0.01; done")
    wait_for_processes(group, 4)
    assert cgroup.kill(group)
    assert cgroup.processes(group) == set()
    assert child.wait(timeout=5) == -signal.SIGKILL


def test_kill_finds_stopped_processes(group: str) -> None:
    """A stopped process dies, too."""
    child = start_in(f"{group}/container", "kill -STOP $$; sleep 30")
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert cgroup.kill(group)
    child.wait(timeout=5)


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
        assert command.run([*inside, *arguments], timeout=10).returncode == 0
    collector = Collector(period=1, layer_period=10)
    pods = [
        PodSource(name, "", cri.PodSandboxAttributes(id=name), str(pins / name)) for name in ("cni-pod", "cni-gone")
    ]
    for _ in range(300):
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
        shown = command.run(["nsenter", f"--net={pins / name}", "ip", "addr", "show", "lo"], timeout=10).stdout.decode()
        assert "127.0.0.1/8" in shown
        assert "::1/128" in shown
    shown = command.run(
        ["nsenter", f"--user={pins / 'user-b'}", "cat", "/proc/self/uid_map"], timeout=10
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
            for _ in range(500):
                if os.readlink(f"/proc/{other.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
                    break
                time.sleep(0.01)
            assert str(pins / "cni-a") in mounts.read_text()
            netns.remove(pins / "cni-a")
            assert str(pins / "cni-a") not in mounts.read_text()
        finally:
            other.kill()
