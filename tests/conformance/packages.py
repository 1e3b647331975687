"""Programs out of Debian packages that are fetched and unpacked, never installed."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from conformance.build import BIN
from support.images import Layer

_TIMEOUT = 300


@cache
def unpacked(package: str) -> Path:
    """Return the directory that holds a Debian package's files, fetching it once a clone.

    Raises subprocess.CalledProcessError when the package cannot be had.
    """
    target = BIN / "packages" / package
    if target.is_dir():
        return target
    scratch = target.with_suffix(".new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    if subprocess.run(_download(package), cwd=scratch, check=False, capture_output=True, timeout=_TIMEOUT).returncode:
        # The lists of a new machine are missing or name versions that the mirror no longer has.
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True, timeout=_TIMEOUT)
        subprocess.run(_download(package), cwd=scratch, check=True, timeout=_TIMEOUT)
    (archive,) = scratch.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(scratch / "root")], check=True, timeout=_TIMEOUT)
    (scratch / "root").rename(target)
    shutil.rmtree(scratch)
    return target


def _download(package: str) -> list[str]:
    # apt's own user may not write into the scratch directory; root fetches.
    return ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package]


def libraries(*programs: Path) -> dict[str, bytes]:
    """Return the shared libraries that programs load, by the absolute path at which the loader looks for them.

    They are this host's own: the packages come from the same distribution. Raises LookupError for one that is missing.
    """
    found: dict[str, bytes] = {}
    for program in programs:
        listing = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True, timeout=20).stdout
        if missing := re.findall(r"(\S+) => not found", listing):
            raise LookupError(f"{program.name} needs {', '.join(missing)}, which this host does not have")
        for path in re.findall(r"(/\S+)\s+\(0x", listing):
            found[path] = Path(path).read_bytes()
    return found


def add_libraries(layer: Layer, *programs: Path) -> Layer:
    """Put what programs load into a layer and return it; directories are left to the layers below."""
    for path, data in sorted(libraries(*programs).items()):
        layer.file(path.lstrip("/"), data, 0o755)
    return layer
