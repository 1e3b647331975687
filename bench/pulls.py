"""Time the pull of one large image by Bulkhead and by a stock containerd 2, in turn, each onto a fresh file system.

    bench/pulls.py [--rounds 5] [--compression gzip] [--cache cold] [--only bulkhead] [--containerd PATH]

As root, and under `nice -n -15` where the machine has other work, too. The image has eight layers, 362 MB of tar: files
of this machine's /usr/lib and, as in real images, some that are compressed already. A docker-registry on the loopback
serves it. For each pull a fresh ext4 with a journal is made in a file behind a loop device with direct I/O, a whole
stack (or a containerd) is started on it, and the page cache is either dropped (cold) or filled with the registry's
blobs (warm). Printed are the medians of the seconds until PullImage has answered, and of those until a syncfs(2) after
it has returned too, since containerd by default answers before an image is on disk and Bulkhead does not. A third side
is that containerd told to have it there as well, by `image_pull_with_sync_fs`. Memory is the largest sum of the PSS of
all processes of a side, taken every 50 ms during pulls that are not timed.
"""

import argparse
import ctypes
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

import zstandard

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from bulkhead.proto.runtime.v1 import api_pb2 as cri  # noqa: E402 - found on the path set above
from conformance.build import build  # noqa: E402
from support import images  # noqa: E402
from support.containerd import Containerd  # noqa: E402
from support.registry import registry  # noqa: E402
from support.stack import Stack  # noqa: E402

CLONE_NEWNET = 0x40000000
LAYERS, TOTAL = 8, 362e6
#: Bytes in each layer that do not compress.
DENSE = 2_800_000
#: Makes 121 MB of the image; the library's own default would make 137.
ZSTD_LEVEL = 9
DISK_BYTES = 3 << 30
SAMPLE_PERIOD = 0.05
LIBC = ctypes.CDLL(None, use_errno=True)


def layered() -> list[bytes]:
    """Return eight tar layers of about equal size: files of /usr/lib, the same ones in every run on one machine."""
    layers = [images.Layer().file("opt/dense", random.Random(n).randbytes(DENSE)) for n in range(LAYERS)]
    total = float(LAYERS * DENSE)
    for directory, below, names in os.walk("/usr/lib"):
        below.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file() or path.stat().st_size > 40e6:
                continue
            data = path.read_bytes()
            position = min(int((total - LAYERS * DENSE) * LAYERS / (TOTAL - LAYERS * DENSE)), LAYERS - 1)
            layers[position].file(str(path).lstrip("/"), data, path.stat().st_mode & 0o777)
            total += 1024 + len(data)
            if total > TOTAL:
                return [layer.tar() for layer in layers]
    return [layer.tar() for layer in layers]


@cache
def compress(layer: bytes, how: str) -> bytes:
    """Return a layer as gzip or zstd."""
    return zstandard.compress(layer, ZSTD_LEVEL) if how == "zstd" else images.compress(layer, how)


class BenchImage(images.Image):
    """An image with layers compressed as here."""

    def blobs(self) -> tuple[bytes, list[bytes]]:
        """Return the image configuration and the compressed layers."""
        config, _ = images.Image(self.layers, compression="plain").blobs()
        return config, [compress(layer, self.compression) for layer in self.layers]


@contextmanager
def fresh_disk(scratch: Path) -> Iterator[Path]:
    """Mount a new journalled ext4 from a file, as the directory of one daemon.

    The loop device passes writes on to the disk, as a disk of its own would take them; by default it copies them into
    the page cache a second time, and writes that out when it is told to flush.
    """
    file = scratch / "disk"
    directory = Path(tempfile.mkdtemp(prefix="bhpull"))
    with file.open("wb") as disk:
        os.posix_fallocate(disk.fileno(), 0, DISK_BYTES)
    attach = ["losetup", "--direct-io=on", "--find", "--show", str(file)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        # Without the lazy initialisation, which would go on in the background of what is measured.
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, device], check=True)
        subprocess.run(["mount", device, str(directory)], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", str(directory)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        directory.rmdir()
        file.unlink()


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for each in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                found += [int(child) for child in Path(f"/proc/{each}/task/{task}/children").read_text().split()]
    return found


def memory(pid: int) -> float:
    """Return the PSS of a process and its descendants, in MB."""
    total = 0
    for each in tree(pid):
        with suppress(OSError, IndexError, ValueError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def cpu(pid: int) -> float:
    """Return the processor seconds of a process and its descendants, reaped ones included."""
    ticks = 0
    for each in tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def keep_nice() -> None:
    """Give the sessions of all processes below this one its own nice value.

    Where the kernel groups processes by session, a nice value counts only within its group (sched(7), autogroup).
    """
    for each in tree(os.getpid()):
        with suppress(OSError):
            Path(f"/proc/{each}/autogroup").write_text(str(os.nice(0)))


@contextmanager
def peak(pid: int, found: list[float]) -> Iterator[None]:
    """Append the largest memory of the block."""
    ended = threading.Event()
    largest = [memory(pid)]

    def watch() -> None:
        while not ended.wait(SAMPLE_PERIOD):
            largest.append(memory(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        found.append(max(largest))


def prepare_cache(scratch: Path, cache: str) -> None:
    """Write out what is dirty, then drop the page cache or fill it with the registry's blobs."""
    os.sync()
    if cache == "cold":
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return
    for path in (scratch / "registry").rglob("data"):
        if path.is_file():
            path.read_bytes()


class Side:
    """One of the two, and what was measured of it."""

    def __init__(self, name: str, make: Callable[[Path], Stack | Containerd]) -> None:
        """Start with nothing; `make` makes its stack in a directory."""
        self.name, self._make = name, make
        self.samples: dict[tuple[str, str, str], list[float]] = {}

    def pull(self, reference: str, kind: tuple[str, str], scratch: Path, *, weigh: bool) -> None:
        """Pull once onto a fresh disk and keep seconds, or with `weigh` the memory instead."""
        with fresh_disk(scratch) as directory, self._make(directory) as running:
            assert running.process is not None
            pid = running.process.pid
            stub = running.image_service()
            request = cri.PullImageRequest(image=cri.ImageSpec(image=reference))
            time.sleep(1.0)
            keep_nice()
            prepare_cache(scratch, kind[1])
            if weigh:
                with peak(pid, self.samples.setdefault((*kind, "peak memory, MB"), [])):
                    stub.PullImage(request, timeout=300)
                return
            used, began = cpu(pid), time.perf_counter()
            stub.PullImage(request, timeout=300)
            self.note(kind, "pull, s", time.perf_counter() - began)
            fd = os.open(directory, os.O_RDONLY)
            LIBC.syncfs(fd)
            os.close(fd)
            self.note(kind, "pull and syncfs, s", time.perf_counter() - began)
            self.note(kind, "processor, s", cpu(pid) - used)

    def note(self, kind: tuple[str, str], what: str, value: float) -> None:
        """Keep one sample."""
        self.samples.setdefault((*kind, what), []).append(value)


def table(sides: list[Side]) -> str:
    """Return the medians (of memory the largest), and the ratios of the first side to each other one."""
    heads = " | ".join([*(side.name for side in sides), *(f"to {side.name}" for side in sides[1:])])
    lines = [f"| | {heads} |", "|---" * (2 * len(sides)) + "|"]
    for key in sides[0].samples:
        of = max if "memory" in key[2] else statistics.median
        values = [of(side.samples[key]) for side in sides]
        cells = [f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in values]
        cells += [f"{values[0] / value:.2f}" for value in values[1:]]
        lines.append(f"| {key[0]}, {key[1]} cache: {key[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--containerd", help="path of the containerd binary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compression", action="append", choices=("gzip", "zstd"))
    parser.add_argument("--cache", action="append", choices=("cold", "warm"))
    parser.add_argument("--only", choices=("bulkhead", "containerd", "synced"))
    parser.add_argument("--no-memory", action="store_true", help="leave out the pulls that measure memory")
    options = parser.parse_args()
    binary = options.containerd or str(build("containerd")["containerd"])
    if LIBC.unshare(CLONE_NEWNET) != 0:
        sys.exit("pulls: needs root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="bhbench") as name, registry(Path(name) / "registry") as address:
        scratch = Path(name)
        pusher = images.Pusher(address)
        pusher.image("pause", "1", images.pause())
        layers = layered()
        compressions = options.compression or ["gzip", "zstd"]
        for compression in compressions:
            image = BenchImage(layers, {}, compression=compression)
            size = sum(map(len, image.blobs()[1]))
            pusher.image("layers", compression, image)
            print(f"{len(layers)} layers, {sum(map(len, layers)) / 1e6:.0f} MB, {size / 1e6:.0f} MB as {compression}")
        images.compress.cache_clear()
        compress.cache_clear()
        layers.clear()

        def containerd(directory: Path, options: str = "") -> Containerd:
            return Containerd(address, binary, os.path.dirname(binary), directory=directory, runtime=options)

        sides = [
            Side("bulkhead", lambda directory: Stack(address, directory=directory)),
            Side("containerd", containerd),
            Side("synced", partial(containerd, options="image_pull_with_sync_fs = true")),
        ]
        sides = [side for side in sides if options.only in (None, side.name)]
        for compression in compressions:
            for cache in options.cache or ["cold", "warm"]:
                kinds = [False] * options.rounds + ([] if options.no_memory else [True] * 2)
                for weigh in kinds:
                    for side in sides:
                        side.pull(f"{address}/layers:{compression}", (compression, cache), scratch, weigh=weigh)
        print(table(sides))


if __name__ == "__main__":
    main()
