"""The units pass systemd's own check, with the programs of this installation in the place of the packaged ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_units_verify(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say of any unit."""
    programs = str(Path(sys.executable).parent)
    for path in UNITS.glob("bulkhead*.*"):
        (tmp_path / path.name).write_text(path.read_text().replace("/usr/lib/bulkhead/bin", programs))
    units = sorted(str(path) for path in tmp_path.iterdir())
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60
    )

    assert len(units) == 11
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_sysusers_reads_the_users() -> None:
    """systemd-sysusers accepts the file."""
    command = ["systemd-sysusers", "--dry-run", str(UNITS / "sysusers.d" / "bulkhead.conf")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (checked.returncode, checked.stderr) == (0, "")
