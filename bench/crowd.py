"""Many pulls at once, and how long other calls take meanwhile.

    bench/crowd.py [--pulls 20] [--slots 2]

As root. Images overlap, each made of four of ten layers of 20 MB, and go onto a fresh ext4 with a journal, as those
of `pulls.py`. Printed are how often each blob was asked for, how long all pulls took, and the latency of ListImages,
ImageStatus and Version while they ran. Whoever takes the latency is a process of its own at a real-time priority: what
a client waits for a processor to read an answer says nothing of the service, and was most of it. The kernel schedules
each thread by itself meanwhile, as it does with services of one systemd slice; its autogroups would let one session,
here all that Bulkhead is, wait for 20 ms behind another one, which is the registry. `nice -n -15` keeps the machine's
other work back.
"""

import argparse
import contextlib
import json
import os
import random
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

# Beside this script, which mypy does not know to be a place to look in.
from pulls import CLONE_NEWNET, LIBC, fresh_disk  # type: ignore[import-not-found] # noqa: E402

from bulkhead import rpc  # noqa: E402 - found on the path set above
from bulkhead.proto.runtime.v1 import api_pb2 as cri  # noqa: E402
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc  # noqa: E402
from support import images  # noqa: E402
from support.registry import registry  # noqa: E402
from support.stack import Stack  # noqa: E402

PERIOD = 0.01


@dataclass
class SlottedStack(Stack):
    """A stack with so many unpack slots."""

    slots: int = 2

    def write_config(self) -> None:
        """Write the configuration with that option in it."""
        super().write_config()
        self.config.write_text(
            self.config.read_text().replace("[bulkhead]\n", f"[bulkhead]\nunpack_slots = {self.slots}\n")
        )


def push(address: str, count: int) -> list[str]:
    """Push so many images and return their names."""
    pusher = images.Pusher(address)
    dice = random.Random(1)
    layers = []
    for number in range(10):
        layer = images.Layer()
        for file in range(200):
            layer.file(f"layer{number}/file{file}", dice.randbytes(50_000) + bytes(50_000))
        layers.append(layer.tar())
    names = []
    for number in range(count):
        image = images.Image(dice.sample(layers, 4), {"Labels": {"number": str(number)}})
        pusher.image("app", str(number), image)
        names.append(f"{address}/app:{number}")
    return names


def probe(address: str, image: str) -> None:
    """Make the calls in turn until standard input ends; print the milliseconds of each as JSON."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    channel = rpc.channel(address)
    images, runtime = cri_grpc.ImageServiceStub(channel), cri_grpc.RuntimeServiceStub(channel)
    status = cri.ImageStatusRequest(image=cri.ImageSpec(image=image))
    calls: dict[str, Callable[[], object]] = {
        "ListImages": lambda: images.ListImages(cri.ListImagesRequest(), timeout=30),
        "ImageStatus": lambda: images.ImageStatus(status, timeout=30),
        "Version": lambda: runtime.Version(cri.VersionRequest(), timeout=30),
    }
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    print("ready", flush=True)
    while not select.select([0], [], [], PERIOD)[0]:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            found[name].append((time.perf_counter() - began) * 1000)
    print(json.dumps(found))


@contextlib.contextmanager
def probing(address: str, image: str, found: dict[str, list[float]]) -> Iterator[None]:
    """Probe during the block, and put what was found there at its end."""
    command = [sys.executable, __file__, "--probe", address, image]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield
        found.update(json.loads(child.communicate()[0]))


@contextlib.contextmanager
def without_autogroups() -> Iterator[None]:
    """Have the kernel schedule threads, not sessions (sched(7)), during the block."""
    switch = Path("/proc/sys/kernel/sched_autogroup_enabled")
    before = switch.read_text() if switch.exists() else ""
    if before:
        switch.write_text("0")
    try:
        yield
    finally:
        if before:
            switch.write_text(before)


def stolen() -> float:
    """Return the seconds that this machine's processors waited for one of its host since its start (proc_stat(5))."""
    ticks = Path("/proc/stat").read_text().split()[8]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run the crowd and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pulls", type=int, default=20)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        probe(*options.probe)
        return
    if LIBC.unshare(CLONE_NEWNET) != 0:
        sys.exit("crowd: needs root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    found: dict[str, list[float]] = {}
    with (
        without_autogroups(),
        tempfile.TemporaryDirectory(prefix="bhcrowd") as scratch,
        registry(Path(scratch) / "registry") as address,
        fresh_disk(Path(scratch)) as directory,
    ):
        names = push(address, options.pulls)
        with SlottedStack(address, pause=names[0], directory=directory, slots=options.slots) as stack:
            service = stack.image_service()
            with ThreadPoolExecutor(options.pulls) as pool, probing(stack.address, names[0], found):
                began, taken = time.perf_counter(), stolen()
                pulls = [
                    pool.submit(service.PullImage, cri.PullImageRequest(image=cri.ImageSpec(image=name)), timeout=300)
                    for name in names
                ]
                for pull in pulls:
                    pull.result()
                seconds, taken = time.perf_counter() - began, stolen() - taken
            asked = Counter(re.findall(r"blob downloaded.*digest=(sha256:[0-9a-f]+)", stack.log))
    print(
        f"{options.pulls} pulls with {options.slots} slots: {seconds:.2f} s, of which the host withheld {taken:.2f} s"
    )
    print(f"each of {len(asked)} blobs was fetched {set(asked.values())} times")
    for name, values in found.items():
        ordered = sorted(values)
        print(
            f"{name}: {len(values)} calls, median {statistics.median(values):.1f} ms,"
            f" 99th percentile {ordered[int(len(ordered) * 0.99)]:.1f} ms, longest {ordered[-1]:.1f} ms"
        )


if __name__ == "__main__":
    main()
