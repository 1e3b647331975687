"""A real unpack helper on a scratch directory, and ways to look at what it made."""

import contextlib
import ctypes
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bulkhead.errors import Unavailable
from image_svc.snapshots import Mount
from image_svc.unpack.client import UnpackClient
from image_svc.unpack.protocol import Limits, Unpacked

LIMITS = Limits(entries=200_000, bytes=1 << 30, seconds=60)
MS_RDONLY, MS_BIND = 1, 4096
MNT_DETACH = 2
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Helper:
    """A running helper."""

    directory: Path
    process: subprocess.Popen[bytes]
    client: UnpackClient
    names: Iterator[int] = field(default_factory=lambda: iter(range(1, 100_000)))

    @property
    def snapshots(self) -> Path:
        """The directory of all snapshots."""
        return self.directory / "root/io.bulkhead/snapshots"

    def tree(self, name: str) -> Path:
        """Return the tree of a snapshot."""
        return self.snapshots / name / "fs"

    def unpack(self, data: bytes, name: str = "", limits: Limits = LIMITS) -> tuple[str, Unpacked]:
        """Unpack a layer through a pipe, as image-svc does; a new name unless one is given."""
        name = name or str(next(self.names))
        here, there = os.pipe()
        feeder = threading.Thread(target=feed, args=(there, data))
        feeder.start()
        try:
            return name, self.client.unpack(name, here, limits)
        finally:
            os.close(here)
            feeder.join()

    def layers(self, *layers: bytes) -> list[str]:
        """Unpack and settle layers, base first, and return their names."""
        chain: list[str] = []
        for data in layers:
            name, _ = self.unpack(data)
            chain.append(name)
            self.client.settle(chain)
        return chain

    def wait_for_trash(self) -> None:
        """Wait until what was removed is gone."""
        patience = time.monotonic() + 60
        while os.listdir(self.snapshots / "trash"):
            assert time.monotonic() < patience
            time.sleep(0.02)

    def children(self) -> list[int]:
        """Return the workers."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]


def feed(fd: int, data: bytes) -> None:
    """Write a layer into a pipe and close it; who reads may stop before its end."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb") as pipe:
        pipe.write(data)


@contextlib.contextmanager
def running(directory: Path | None = None, more: str = "") -> Iterator[Helper]:
    """Run a helper in a scratch directory, with `more` configuration; it must end cleanly when told to."""
    with contextlib.ExitStack() as stack:
        place = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bhunpack")))
        helper = start(place, more)
        try:
            yield helper
        finally:
            helper.process.send_signal(signal.SIGTERM)
            status = helper.process.wait(60)
        assert status == 0


def start(place: Path, more: str = "") -> Helper:
    """Start a helper whose root and state are in `place`, and wait until it answers."""
    file = place / "config.toml"
    file.write_text(
        f'version = 3\nroot = "{place}/root"\nstate = "{place}/state"\n[bulkhead.users]\nimage-svc = "nobody"\n{more}'
    )
    process = subprocess.Popen([sys.executable, "-m", "image_svc.unpack", "--config", str(file)])
    client = UnpackClient(place / "state/io.bulkhead/image-svc-unpack/unpack.sock")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            client.ping()
        except Unavailable:
            assert process.poll() is None, "the helper did not start"
            time.sleep(0.02)
        else:
            return Helper(place, process, client)
    process.kill()
    raise AssertionError(f"the helper does not answer, ended with {process.wait(30)}")


def look(root: Path) -> dict[str, dict[str, Any]]:
    """Return everything about every file below a directory but its inode: hard links show as a common name."""
    first: dict[int, str] = {}
    found: dict[str, dict[str, Any]] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(root))
        entry: dict[str, Any] = {
            "type": stat.S_IFMT(status.st_mode),
            "mode": stat.S_IMODE(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            "xattrs": {key: os.getxattr(path, key, follow_symlinks=False) for key in _xattrs(path)},
            "mtime": status.st_mtime_ns,
        }
        if stat.S_ISREG(status.st_mode):
            entry["data"] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            entry["target"] = os.readlink(path)
        elif not stat.S_ISDIR(status.st_mode):
            entry["device"] = status.st_rdev
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            entry["links"] = (first.setdefault(status.st_ino, name), status.st_nlink)
        found[name] = entry
    return found


def _xattrs(path: Path) -> list[str]:
    return [key for key in os.listxattr(path, follow_symlinks=False) if not key.startswith("trusted.")]


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], at: Path) -> Iterator[Path]:
    """Carry out a plan of one mount the way a shim does."""
    [mount] = mounts
    at.mkdir(exist_ok=True)
    flags = MS_BIND if mount.type == "bind" else 0
    data = ",".join(option for option in mount.options if option not in ("rw", "ro", "rbind"))
    here = os.getcwd()
    if len(data) > 4000:
        base = str(Path(data.rpartition("lowerdir=")[2].partition(":")[0]).parents[1])
        os.chdir(base)
        data = data.replace(f"{base}/", "")
    try:
        kind = mount.type.encode()
        result = LIBC.mount(mount.source.encode(), str(at.resolve()).encode(), kind, flags, data.encode())
        assert result == 0, (os.strerror(ctypes.get_errno()), len(data), data[:300])
    finally:
        os.chdir(here)
    try:
        yield at
    finally:
        assert LIBC.umount2(str(at.resolve()).encode(), MNT_DETACH) == 0


def unmount(place: Path) -> None:
    """Unmount a file system of which a worker that was killed may hold something for a moment more."""
    deadline = time.monotonic() + 20
    while subprocess.run(["umount", str(place)], check=False, timeout=60).returncode:
        assert time.monotonic() < deadline, f"{place} is busy"
        time.sleep(0.1)


def run(*command: str) -> None:
    """Run a program that must succeed."""
    subprocess.run(command, check=True, capture_output=True, timeout=60)
