"""Run the Kubernetes project's conformance suite, critest, against a Bulkhead stack of its own.

Usage: python -m conformance.run [--runtime runc|crun|runc-1.5]... [--focus REGEX]... [--kill SERVICE]
                                 [--remove-images] [--peer containerd] [--seed NUMBER] [--keep DIRECTORY]

Needs root. Everything is in a network and an IPC namespace of its own: the suite's fixed host ports cannot meet
somebody else's, and the shared memory segments that it leaves go with the namespace. After the whole suite come the
spec whose digest only upstream has, with a digest that is there, and the streaming specs over WebSocket. Exits 1 on a
failed spec, on a skipped one that `expected.toml` does not allow, on an entry there that nothing needs, when the stack
leaves something behind on the host, and when a peer is more than a tenth faster.
"""

import argparse
import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.supervisor.faces import ask
from conformance import images, peer
from conformance.build import BIN, build
from conformance.plan import Place, Plan, fill
from conformance.probes import Subject
from conformance.report import Report
from conformance.suite import Suite
from support.leaks import Host
from support.registry import registry
from support.stack import SERVICES, Stack

CLONE_NEWIPC, CLONE_NEWNET = 0x08000000, 0x40000000
#: Debian's runtimes, and a current runc, which maps the ids of mounts.
BINARY = {"runc": "/usr/sbin/runc", "crun": "/usr/bin/crun", "runc-1.5": str(BIN / "runc" / "runc")}
#: What can be killed, and the name of its process.
KILLABLE = {name: name for name in (*SERVICES, "image-svc-unpack")} | {"zygote": "bulkhead-shim-zygote"}


def main(arguments: list[str] | None = None) -> int:
    """Run the suite with each runtime and return the exit status."""
    parser = argparse.ArgumentParser(description="Run critest against a stack of its own.")
    parser.add_argument("--runtime", action="append", choices=sorted(BINARY), help="default: those that the run is for")
    parser.add_argument("--focus", action="append", default=[], metavar="REGEX", help="only specs whose text matches")
    parser.add_argument("--kill", default="", choices=KILLABLE, help="kill -9 this service before each spec")
    parser.add_argument("--remove-images", action="store_true", help="remove every image before each spec")
    parser.add_argument("--peer", default="", choices=("containerd",), help="run the suite with this one, too")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 1 << 31), help="the order of a run before")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep critest's words and the stack's log there")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("the suite starts real containers: run it as root")
    # What is fetched is fetched before the network is left.
    images.fetch()
    for name in ("cri-tools", "runc", *filter(None, [options.peer])):
        build(name)
    _own_namespaces()
    # A run that is told to end takes its stack, its registry and its pods with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    runtimes = options.runtime or list(BINARY)
    if not options.runtime and options.peer:
        # containerd writes what crun 1.8 does not read (ociVersion 1.1 and later).
        runtimes.remove("crun")
    elif not options.runtime and (options.kill or options.remove_images):
        # It is the services that are troubled, and their restarts take most of such a run's ten minutes.
        runtimes = ["crun"]
    good = True
    with tempfile.TemporaryDirectory(prefix="bhconf") as scratch, registry(Path(scratch) / "registry") as address:
        digests = images.push_all(address)
        place = Place(address, digests[f"{images.DIGEST_REPOSITORY}:latest"], options.keep or Path(scratch))
        place.keep.mkdir(parents=True, exist_ok=True)
        for runtime in runtimes:
            plan = Plan(runtime, options.focus, options.kill, options.remove_images, options.seed)
            fine, report = run(plan, place)
            good &= fine
            if options.peer:
                good &= peer.compare(report, plan, place)
    return 0 if good else 1


def run(plan: Plan, place: Place) -> tuple[bool, Report]:
    """Run the suite once, print what came of it, and return whether all was as it should be."""
    stack = Stack(place.registry, default=plan.runtime, pause=images.SANDBOX_IMAGE, more=_handler(plan.runtime))
    mark = str(stack.directory)
    before = Host.look(mark)
    log, output = (place.keep / f"{plan.runtime}.{kind}" for kind in ("log", "out"))
    output.unlink(missing_ok=True)
    report = Report(Subject(BINARY[plan.runtime], place.registry), whole=not plan.focus)
    with _running(stack, place.registry, log):
        suite = Suite(f"unix://{stack.address}", stack.directory / "tmp", output, plan.seed)
        troubled = plan.kill or plan.remove_images
        fill(report, suite, plan, place, partial(_trouble, plan, stack) if troubled else None)
    verdict = report.judged()
    print(f"\n== {plan.title} ==\n{verdict.text()}", flush=True)
    deadline = time.monotonic() + 20
    # The last pods' shims have taken their files away and may be on their way out.
    while (left := _leaks(before, Host.look(mark), stack, log.read_text())) and time.monotonic() < deadline:
        time.sleep(0.2)
    for kind, items in left.items():
        print(f"LEFT BEHIND {kind}: {', '.join(items)}")
    return verdict.good and not left, report


def _trouble(plan: Plan, stack: Stack) -> None:
    if plan.remove_images:
        _remove_images(stack)
    if plan.kill:
        _kill(stack, KILLABLE[plan.kill])


def _handler(runtime: str) -> str:
    """Return the configuration of a runtime that every stack has not already."""
    if runtime in ("runc", "crun"):
        return ""
    table = f"plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'{runtime}'.options"
    return f'[{table}]\nBinaryName = "{BINARY[runtime]}"\n'


def _remove_images(stack: Stack) -> None:
    """Remove every image, that of the pods' pause containers among them."""
    service = stack.image_service()
    for image in service.ListImages(cri.ListImagesRequest(), timeout=30).images:
        service.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image.id)), timeout=30)


def _kill(stack: Stack, service: str) -> None:
    """Kill a service that serves, which after the last time it may not yet, and wait until its process is gone.

    The frontend waits for the services behind it, so the spec may begin at once. Nobody waits for the frontend: its
    socket refuses connections until it is back, which the kubelet answers by trying again and critest by failing.
    """
    deadline = time.monotonic() + 60
    while not _serves(stack, service):
        if time.monotonic() > deadline:
            raise SystemExit(f"{service} does not come back:\n{stack.log[-4000:]}")
        time.sleep(0.05)
    old = stack.kill(service)
    while Path(f"/proc/{old}").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    if service == "cri-frontend":
        stack.wait_restarted(service, old)


def _serves(stack: Stack, service: str) -> bool:
    """Whether a service says that it is ready, or is there, if nobody can ask it."""
    if service in stack.ports:
        return ask(stack.ports[service], "/readyz")[0] == 200
    try:
        return stack.pid(service) > 0
    except AssertionError:
        return False


def _leaks(before: Host, after: Host, stack: Stack, log: str) -> dict[str, list[str]]:
    """Return what a stack left on the host, by kind; other stacks may come and go meanwhile.

    Groups and addresses are its own where its log names the container or pod that had them.
    """
    left = before.left_by(after)
    left["mounts"] = [path for path in left.get("mounts", []) if path.startswith(str(stack.directory))]
    groups = [(path, re.search("[0-9a-f]{64}", path)) for path in left.get("cgroups", [])]
    left["cgroups"] = [path for path, ident in groups if ident is not None and ident[0] in log]
    left["addresses"] = list(_held_addresses(stack.number, log))
    # The bridge and the chains that all pods share belong to the CNI plugins' host side, which no DEL removes.
    left["links"] = [name for name in left.get("links", []) if not name.startswith("bh")]
    left["rules"] = [rule for rule in left.get("rules", []) if "CNI-HOSTPORT-" not in rule or "CNI-DN-" in rule]
    return {kind: items for kind, items in left.items() if items}


def _held_addresses(number: int, log: str) -> Iterator[str]:
    """Yield the IPv4 addresses that host-local keeps for pods of a log: a file each, the pod's id first."""
    for file in Path(f"/run/bh{number}").rglob("*.*.*.*"):
        try:
            pod = file.read_text().partition("\r")[0]
        except FileNotFoundError:
            continue  # another stack's, freed meanwhile
        if pod and pod in log:
            yield file.name


@contextmanager
def _running(stack: Stack, address: str, log: Path) -> Iterator[None]:
    """Start a stack whose registries are the local one, and keep its log."""
    stack.write_config()
    images.write_mirrors(stack.directory / "certs.d", address)
    with stack:
        try:
            yield
        finally:
            log.write_text(stack.log)


def _own_namespaces() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWIPC) != 0:
        raise SystemExit(f"no namespaces of our own: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=60)


if __name__ == "__main__":
    sys.exit(main())
