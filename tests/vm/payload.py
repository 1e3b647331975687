"""The disk with Bulkhead on it: the wheel's environment for /usr/lib/bulkhead, this clone's files, crictl, the agent.

In the machine it is mounted at /payload: `/payload/bulkhead` (bound to /usr/lib/bulkhead, the path its programs were
made for), `/payload/source` (what git knows of the clone, and the built conformance tools), `/payload/agent.py`.
The wheel and everything it depends on are fetched and built outside, and installed by the image's own Python.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conformance.build import build
from vm.image import CACHE, REPOSITORY, TIMEOUT, Image, make_disk

#: Installs into /usr/lib/bulkhead of the image's directory, over which the payload's own is bound for the while.
_INSTALL = """set -e
mount --bind "$ENVIRONMENT" "$ROOTFS/usr/lib/bulkhead"
mount --bind "$WHEELS" "$ROOTFS/mnt"
mount --bind /dev "$ROOTFS/dev"
mount -t proc proc "$ROOTFS/proc"
chroot "$ROOTFS" /bin/sh -ec '
  test -x /usr/lib/bulkhead/bin/python || python3 -m venv /usr/lib/bulkhead
  /usr/lib/bulkhead/bin/pip install -q --no-index --disable-pip-version-check --no-cache-dir $*' sh $*
"""


def payload(image: Image) -> Path:
    """Return the payload's disk, made anew of what the clone holds now; the dependencies are kept from before.

    Raises subprocess.CalledProcessError when a step fails.
    """
    environment = _environment(image)
    wheels = CACHE / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(REPOSITORY))
    (wheel,) = wheels.glob("bulkhead-*.whl")
    _install(image, environment, wheels, "--no-deps", "--force-reinstall", f"/mnt/{wheel.name}")

    tree = CACHE / "payload"
    source = tree / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    _copy_clone(source)
    _copy_tools(source)
    shutil.copy(REPOSITORY / "tests" / "vm" / "agent.py", tree / "agent.py")
    disk = CACHE / "payload.ext4"
    make_disk(tree, disk, "payload", 256)
    return disk


def _environment(image: Image) -> Path:
    """Return the environment with everything but Bulkhead itself, made once for each pyproject.toml and image."""
    definition = (REPOSITORY / "pyproject.toml").read_bytes() + image.directory.name.encode()
    stamp, wanted = CACHE / "environment-stamp", hashlib.sha256(definition).hexdigest()
    environment = CACHE / "payload" / "bulkhead"
    if stamp.exists() and stamp.read_text() == wanted:
        return environment
    wheels = CACHE / "wheelhouse"
    for directory in (environment, wheels):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    os.chmod(environment, 0o755)
    # The project first, for its dependencies; its own wheel is made anew on every run.
    _pip("wheel", "--wheel-dir", str(wheels), str(REPOSITORY))
    _pip("wheel", "--wheel-dir", str(wheels), "--group", f"{REPOSITORY}/pyproject.toml:dev")
    (own,) = wheels.glob("bulkhead-*.whl")
    own.unlink()
    names = [f"/mnt/{path.name}" for path in sorted(wheels.glob("*.whl"))]
    _install(image, environment, wheels, "--no-deps", *names)
    stamp.write_text(wanted)
    return environment


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    subprocess.run(command, check=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)


def _install(image: Image, environment: Path, wheels: Path, *arguments: str) -> None:
    variables = {"ROOTFS": str(image.rootfs), "ENVIRONMENT": str(environment), "WHEELS": str(wheels)}
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _INSTALL, "sh", *arguments]
    subprocess.run(command, check=True, timeout=TIMEOUT, env=os.environ | variables, stdin=subprocess.DEVNULL)


def _copy_clone(target: Path) -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    for name in listing.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)


def _copy_tools(target: Path) -> None:
    """Copy built tools with their stamps; the machine has no Go to build them with."""
    for name in ("cri-tools", "streamclient", "checkpointctl", "runc", "nriplugin"):
        for path in build(name).values():
            kept = target / path.parent.relative_to(REPOSITORY)
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, kept / path.name)
            shutil.copy2(path.parent / "stamp", kept / "stamp")
