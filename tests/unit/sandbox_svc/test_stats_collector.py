import time
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.stats import Collector, ContainerSource, PodSource
from sandbox_svc.stats import collector as collector_module


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 1_000_000_000_000

    def time_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(collector_module, "time", clock)
    return clock


def use(root: Path, nanoseconds: int, group: str = "pod/c") -> None:
    for tree, file, text in (
        ("cpuacct", "cpuacct.usage", str(nanoseconds)),
        ("memory", "memory.usage_in_bytes", "1000"),
        ("memory", "memory.stat", "total_rss 10"),
        ("pids", "pids.current", "2"),
    ):
        (root / tree / group).mkdir(parents=True, exist_ok=True)
        (root / tree / group / file).write_text(text)


def source(layer: str = "") -> ContainerSource:
    return ContainerSource("c", "/pod/c", cri.ContainerAttributes(id="c"), layer, "/images")


def subject(root: Path) -> Collector:
    return Collector(period=1.0, layer_period=10.0, root=root)


def test_a_rate_needs_two_samples_a_period_apart(tmp_path: Path, clock: Clock) -> None:
    """The first reading has no rate; later ones have the rate since the last sample at least a period old."""
    use(tmp_path, 0)
    collector = subject(tmp_path)
    first = collector.container_stats(source())
    assert first.cpu.HasField("usage_core_nano_seconds")
    assert not first.cpu.HasField("usage_nano_cores")
    clock.now += 2_000_000_000
    use(tmp_path, 1_000_000_000)
    assert collector.container_stats(source()).cpu.usage_nano_cores.value == 500_000_000
    clock.now += 1_000_000
    use(tmp_path, 1_001_000_000)
    again = collector.container_stats(source()).cpu
    assert (again.usage_core_nano_seconds.value, again.usage_nano_cores.value) == (1_001_000_000, 500_000_000)


def test_a_restarted_group_begins_anew(tmp_path: Path, clock: Clock) -> None:
    """Usage that went down belongs to a new group: no rate, and none that is negative."""
    use(tmp_path, 5_000_000_000)
    collector = subject(tmp_path)
    collector.container_stats(source())
    clock.now += 2_000_000_000
    use(tmp_path, 1_000)
    assert not collector.container_stats(source()).cpu.HasField("usage_nano_cores")
    clock.now += 1_000_000_000
    use(tmp_path, 1_000 + 7)
    assert collector.container_stats(source()).cpu.usage_nano_cores.value == 7


def test_forgetting_drops_the_samples(tmp_path: Path, clock: Clock) -> None:
    """After forget a container of the same id starts without a past."""
    use(tmp_path, 0)
    collector = subject(tmp_path)
    collector.container_stats(source())
    collector.forget("c")
    clock.now += 2_000_000_000
    assert not collector.container_stats(source()).cpu.HasField("usage_nano_cores")
    collector.forget("never known")


def test_what_is_gone_is_absent(tmp_path: Path) -> None:
    """A container without a group keeps its attributes and has no numbers."""
    (tmp_path / "memory").mkdir()
    stats = subject(tmp_path).container_stats(source())
    assert stats.attributes.id == "c"
    assert not stats.HasField("cpu")
    assert not stats.HasField("memory")
    assert not stats.HasField("writable_layer")


def test_a_layer_is_counted_in_the_background(tmp_path: Path) -> None:
    """The first answer may lack the count, but names the file system; soon the count is there."""
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "file").write_bytes(b"x" * 5000)
    (tmp_path / "memory").mkdir()
    collector = subject(tmp_path)
    stats = collector.container_stats(source(str(layer)))
    assert stats.writable_layer.fs_id.mountpoint == "/images"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        stats = collector.container_stats(source(str(layer)))
        if stats.writable_layer.HasField("used_bytes"):
            break
        time.sleep(0.01)
    assert stats.writable_layer.used_bytes.value >= 5000
    assert stats.writable_layer.inodes_used.value == 2
    collector.close()


def test_a_pod_adds_up_its_containers(tmp_path: Path) -> None:
    """A pod has its own group's numbers, its containers' stats, and their processes where its group has no count."""
    use(tmp_path, 100, "pod")
    use(tmp_path, 70)
    (tmp_path / "pids/pod/pids.current").unlink()
    pod = PodSource("p", "/pod", cri.PodSandboxAttributes(id="p"), containers=[source()])
    [stats] = subject(tmp_path).list_pod_stats([pod])
    assert stats.linux.cpu.usage_core_nano_seconds.value == 100
    assert [container.attributes.id for container in stats.linux.containers] == ["c"]
    assert stats.linux.process.process_count.value == 2
    assert not stats.linux.HasField("network")
