from pathlib import Path

import pytest

from sandbox_svc.stats import usage

PRESSURE = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n"


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    write(tmp_path / "cpuacct/pod", cpuacct__usage="123456789\n")
    write(tmp_path / "pids/pod", pids__current="3\n")
    write(
        tmp_path / "memory/pod",
        memory__usage_in_bytes="1000\n",
        memory__limit_in_bytes="5000\n",
        memory__stat="inactive_file 1\ntotal_inactive_file 300\ntotal_rss 600\ntotal_pgfault 9\ntotal_pgmajfault 2\n",
    )
    return tmp_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    write(tmp_path, cgroup__controllers="cpu memory")
    write(
        tmp_path / "pod",
        cpu__stat="usage_usec 123\nuser_usec 100\n",
        cpu__pressure=PRESSURE,
        io__pressure=PRESSURE,
        memory__current="1000\n",
        memory__max="max\n",
        memory__stat="anon 600\ninactive_file 300\npgfault 9\npgmajfault 2\n",
        memory__swap__current="50\n",
        memory__swap__max="80\n",
        pids__current="3\n",
    )
    return tmp_path


def test_version_1(v1: Path) -> None:
    """The numbers come from cpuacct, memory and pids; without swap accounting there is no swap, and no pressure."""
    found = usage.read("/pod", v1)
    assert found.cpu == usage.Cpu(123456789)
    assert found.processes == 3
    assert found.memory == usage.Memory(
        usage=1000, working_set=700, available=4300, resident=600, faults=9, major_faults=2
    )
    assert found.io_stall is None


def test_version_1_swap(v1: Path) -> None:
    """memsw counts memory and swap together; what is left of it is what both may still take."""
    write(v1 / "memory/pod", memory__memsw__usage_in_bytes="1200\n", memory__memsw__limit_in_bytes="9000\n")
    found = usage.read("/pod", v1).memory
    assert found
    assert (found.swap, found.swap_available) == (200, 7800)


def test_version_1_without_limit(v1: Path) -> None:
    """The kernel's rounded idea of no limit leaves nothing to report as available."""
    write(v1 / "memory/pod", memory__limit_in_bytes="9223372036854771712\n")
    found = usage.read("/pod", v1).memory
    assert found
    assert found.available == 0


def test_version_2(v2: Path) -> None:
    """Microseconds become nanoseconds, anon is the resident set, "max" is no limit, pressure is read."""
    found = usage.read("/pod", v2)
    stall = usage.Stall(usage.Pressure(1_000_000, 1.5, 0.25, 0.0), usage.Pressure(7000, 0.5, 0.0, 0.0))
    assert found.cpu == usage.Cpu(123_000, stall)
    assert found.io_stall == stall
    assert found.memory == usage.Memory(
        usage=1000, working_set=700, available=0, resident=600, faults=9, major_faults=2, swap=50, swap_available=30
    )


def test_a_group_that_is_gone_has_no_usage(v1: Path) -> None:
    """Nothing is made up for what cannot be read."""
    assert usage.read("/gone", v1) == usage.Usage()


def test_inactive_cache_above_usage_is_not_negative(v1: Path) -> None:
    """The two numbers are read one after the other; the working set never falls below 0."""
    write(v1 / "memory/pod", memory__usage_in_bytes="100\n")
    found = usage.read("/pod", v1).memory
    assert found
    assert found.working_set == 0
