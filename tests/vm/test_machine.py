"""Boots the machine once and runs in it what only it can show; each test here is a pytest run inside."""

import os
import shutil
from collections.abc import Iterator

import pytest

from vm.image import image
from vm.machine import Machine
from vm.payload import payload

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Seconds for one run inside, on a host that has other things to do as well.
TIMEOUT = 2400


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with this clone's Bulkhead in it."""
    if missing := [name for name in ("qemu-system-x86_64", "mmdebstrap", "mke2fs") if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: make vm-test does")
    if os.geteuid() != 0:
        pytest.skip("making the image needs root")
    made = image()
    with Machine(made, payload(made)) as running:
        yield running


@pytest.mark.parametrize(
    ("before", "path"),
    [
        # First, so that it is systemd-sysusers that makes the users.
        ("true", "tests/vm/inside/test_unit_features.py tests/vm/inside/test_units.py"),
        ("scripts/setup run", "tests/vm/inside/test_cgroup_v2.py"),
        ("scripts/setup run", "tests/root/test_story.py"),
        # Debian's CRIU knows Debian's kernel, and not every newer one.
        ("criu check && scripts/setup run", "tests/root/test_checkpoint.py"),
        # Debian's crun does not map the ids of mounts; the payload brings a current runc.
        ("scripts/setup run", "tests/root/test_user_namespaces.py -k 'not crun'"),
        ("scripts/setup run", "tests/root/test_nri_hooks.py -k '(life_of_a_pod or every_adjustment) and runc'"),
        ("scripts/setup run", "tests/root/test_hardware_stack.py -k block_io"),
    ],
)
def test_inside(machine: Machine, before: str, path: str) -> None:
    """Everything selected passes in the machine, where nothing is skipped."""
    assert machine.check("stat -f -c %T /sys/fs/cgroup; cat /proc/1/comm").split() == ["cgroup2fs", "systemd"]
    pytest_inside = "BULKHEAD_TEST_PATIENCE=240 /usr/lib/bulkhead/bin/pytest -q --tb=short -rPs -p no:cacheprovider"
    done = machine.run(f"cd /payload/source && {before} && {pytest_inside} {path} 2>&1", TIMEOUT)
    print(done.output)
    assert done.status == 0, done.output[-6000:]
    assert "skipped" not in done.output.splitlines()[-1]
