"""Time a container runtime over its CRI socket, or two of them side by side in one run.

    bench/bench.py --image REF [--pull-image REF] SOCKET [SOCKET]

Every round does the same work on each socket in turn, so that both meet the same machine; what is printed are medians,
and with two sockets the ratio of the first to the second. All pods ask for the RuntimeDefault seccomp profile, as a
kubelet with SeccompDefault does. The image must be there or be pullable, and hold `sh`, `sleep`, `true` and `yes`.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc

#: Longest wait for one call, seconds.
TIMEOUT = 300
DEFAULT_SECCOMP = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)


@dataclass
class Runtime:
    """One runtime under measurement, and the samples taken of it."""

    socket: str
    name: str
    match: str
    samples: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.default_authority", "localhost")]
        channel = grpc.insecure_channel(f"unix:{self.socket}", options=options)
        self.runtime = cri_grpc.RuntimeServiceStub(channel)
        self.images = cri_grpc.ImageServiceStub(channel)
        self.logs = tempfile.mkdtemp(prefix="bench-logs-")
        self.count = 0

    def note(self, what: str, value: float) -> None:
        """Keep one sample."""
        self.samples.setdefault(what, []).append(value)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Keep the block's duration in milliseconds."""
        began = time.perf_counter()
        yield
        self.note(what, (time.perf_counter() - began) * 1000)

    def pod_config(self) -> cri.PodSandboxConfig:
        """Return the configuration of a pod that has a name of its own."""
        self.count += 1
        name = f"bench-{os.getpid()}-{self.count}"
        security = cri.LinuxSandboxSecurityContext(seccomp=DEFAULT_SECCOMP)
        return cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="bench"),
            log_directory=self.logs,
            linux=cri.LinuxPodSandboxConfig(security_context=security, cgroup_parent="/bench"),
        )

    def up(self, image: str, command: str = "sleep 1000000") -> tuple[str, str]:
        """Start a pod of one container and return both ids."""
        config = self.pod_config()
        run = cri.RunPodSandboxRequest(config=config)
        pod = self.runtime.RunPodSandbox(run, timeout=TIMEOUT).pod_sandbox_id
        container = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="main"),
            image=cri.ImageSpec(image=image),
            command=["sh", "-c", f"exec {command}" if "|" not in command else command],
            log_path=f"{pod}.log",
            linux=cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(seccomp=DEFAULT_SECCOMP)),
        )
        create = cri.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
        made = self.runtime.CreateContainer(create, timeout=TIMEOUT).container_id
        self.runtime.StartContainer(cri.StartContainerRequest(container_id=made), timeout=TIMEOUT)
        return pod, made

    def down(self, pod: str, container: str) -> None:
        """Stop and remove a pod and its container, as the kubelet does."""
        self.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=0), timeout=TIMEOUT)
        self.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=TIMEOUT)
        self.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=TIMEOUT)
        self.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=TIMEOUT)

    def memory(self) -> float:
        """Return the PSS of every process whose command line matches, in MB."""
        total = 0
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if int(directory.name) != os.getpid() and re.search(self.match, command):
                    rollup = (directory / "smaps_rollup").read_text()
                    total += int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0])
            except (OSError, IndexError):  # ended meanwhile, or a kernel thread
                continue
        return total / 1024


def pods(runtime: Runtime, options: argparse.Namespace) -> None:
    """One pod up and down, and ExecSync of `true` in it."""
    with runtime.timed("pod up, ms"):
        pod, container = runtime.up(options.image)
    for _ in range(5):
        with runtime.timed("ExecSync true, ms"):
            request = cri.ExecSyncRequest(container_id=container, cmd=["true"], timeout=30)
            runtime.runtime.ExecSync(request, timeout=TIMEOUT)
    with runtime.timed("pod down, ms"):
        runtime.down(pod, container)


def burst(runtime: Runtime, options: argparse.Namespace) -> None:
    """Many pods by several workers: up, what lists and memory cost with them, down."""
    runtime.note("memory idle, MB", runtime.memory())
    with ThreadPoolExecutor(options.workers) as pool:
        began = time.perf_counter()
        made = list(pool.map(lambda _: runtime.up(options.image), range(options.pods)))
        runtime.note(f"{options.pods} pods up, pods/s", options.pods / (time.perf_counter() - began))
        time.sleep(2)
        runtime.note(f"memory with {options.pods} pods, MB", runtime.memory())
        lists(runtime)
        began = time.perf_counter()
        list(pool.map(lambda pair: runtime.down(*pair), made))
        runtime.note(f"{options.pods} pods down, pods/s", options.pods / (time.perf_counter() - began))


def lists(runtime: Runtime) -> None:
    """The calls that a kubelet repeats for ever."""
    calls: dict[str, Callable[[], object]] = {
        "ListPodSandbox": lambda: runtime.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=TIMEOUT),
        "ListContainers": lambda: runtime.runtime.ListContainers(cri.ListContainersRequest(), timeout=TIMEOUT),
        "ListContainerStats": lambda: runtime.runtime.ListContainerStats(
            cri.ListContainerStatsRequest(), timeout=TIMEOUT
        ),
        "Status": lambda: runtime.runtime.Status(cri.StatusRequest(), timeout=TIMEOUT),
        "Version": lambda: runtime.runtime.Version(cri.VersionRequest(), timeout=TIMEOUT),
    }
    for name, call in calls.items():
        for _ in range(20):
            with runtime.timed(f"{name}, ms"):
                call()


def logs(runtime: Runtime, options: argparse.Namespace) -> None:
    """80-byte lines through a container's log, until the last one is in the file."""
    size = options.log_mb << 20
    line = "x" * 79
    pod, container = runtime.up(options.image, f"yes {line} | head -c {size}")
    path = Path(runtime.logs) / f"{pod}.log"
    began = time.perf_counter()
    lines = size // 80
    # Every line gains a time stamp and two words, so the file outgrows the output.
    while time.perf_counter() - began < TIMEOUT:
        status = runtime.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container), timeout=TIMEOUT)
        if status.status.state == cri.CONTAINER_EXITED:
            break
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    runtime.note("log of 80-byte lines, MB/s", size / 1e6 / seconds)
    with path.open("rb") as file:
        written = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    if written < lines:
        sys.exit(f"{runtime.name}: {written} lines of {lines} are in the log")
    path.unlink()
    runtime.down(pod, container)


def pull(runtime: Runtime, options: argparse.Namespace) -> None:
    """Pull an image that is not here."""
    image = cri.ImageSpec(image=options.pull_image)
    runtime.images.RemoveImage(cri.RemoveImageRequest(image=image), timeout=TIMEOUT)
    time.sleep(3)
    with runtime.timed("pull, ms"):
        runtime.images.PullImage(cri.PullImageRequest(image=image), timeout=TIMEOUT)


WORK: dict[str, Callable[[Runtime, argparse.Namespace], None]] = {
    "pods": pods,
    "burst": burst,
    "logs": logs,
    "pull": pull,
}


def table(runtimes: list[Runtime]) -> str:
    """Return medians, and the ratio of the first to the second, as aligned text."""
    heads = ["", *(runtime.name for runtime in runtimes), *(["ratio"] if len(runtimes) == 2 else [])]
    rows = [heads]
    for what in runtimes[0].samples:
        medians = [statistics.median(runtime.samples[what]) for runtime in runtimes if what in runtime.samples]
        row = [what, *(f"{value:.2f}" for value in medians)]
        if len(medians) == 2:
            row.append(f"{medians[0] / medians[1]:.2f}")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sockets", nargs="+", metavar="SOCKET", help="CRI socket, or NAME=SOCKET; one or two")
    parser.add_argument("--image", required=True, help="reference of the container image")
    parser.add_argument("--pull-image", help="reference of the image to time the pull of (skipped without)")
    parser.add_argument("--match", action="append", default=[], help="regex on command lines for memory, per socket")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pods", type=int, default=40)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--log-mb", type=int, default=64)
    parser.add_argument("--only", action="append", choices=sorted(WORK))
    parser.add_argument("--json", action="store_true", help="print every sample as JSON")
    options = parser.parse_args()
    if len(options.sockets) > 2:
        parser.error("one or two sockets")
    runtimes = []
    for index, given in enumerate(options.sockets):
        name, _, socket = given.rpartition("=")
        match = options.match[index] if index < len(options.match) else re.escape(os.path.dirname(socket))
        runtimes.append(Runtime(socket, name or os.path.basename(os.path.dirname(socket)), match))
    for runtime in runtimes:
        spec = cri.ImageSpec(image=options.image)
        runtime.images.PullImage(cri.PullImageRequest(image=spec), timeout=TIMEOUT)
        runtime.down(*runtime.up(options.image))  # the first pod also pulls the pause image
    repeats = {"pods": options.rounds, "burst": 1, "logs": 3, "pull": 3}
    for name in options.only or WORK:
        if name == "pull" and not options.pull_image:
            continue
        for _ in range(repeats[name]):
            for runtime in runtimes:
                WORK[name](runtime, options)
    if options.json:
        print(json.dumps({runtime.name: runtime.samples for runtime in runtimes}, indent=1))
    else:
        print(table(runtimes))


if __name__ == "__main__":
    main()
