"""Run the Kubernetes project's conformance suite, critest, against a Bulkhead stack of its own.

Usage: python -m conformance.run [--runtime runc|crun]... [--focus REGEX]... [--websocket] [--kill SERVICE]
                                 [--keep DIRECTORY]

Needs root. Everything is in a network and an IPC namespace of its own: the suite's fixed host ports cannot meet
somebody else's, and the shared memory segments that it leaves go with the namespace. Exits 1 on a failed spec, on a
skipped one that `expected.toml` does not allow, and when the stack leaves something behind on the host.
"""

import argparse
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from conformance import images
from conformance.build import BIN, build
from conformance.report import Report
from conformance.suite import Suite
from support.leaks import Host
from support.registry import registry
from support.stack import SERVICES, Stack

CLONE_NEWIPC, CLONE_NEWNET = 0x08000000, 0x40000000
MIRRORED = ("registry.k8s.io", "k8s.gcr.io", "gcr.io")
#: Debian's runtimes, and a current runc, which maps the ids of mounts.
BINARY = {"runc": "/usr/sbin/runc", "crun": "/usr/bin/crun", "runc-1.5": str(BIN / "runc" / "runc")}
WEBSOCKET = ("-websocket-exec", "-websocket-attach", "-websocket-portforward")
KILLABLE = (*SERVICES, "image-svc-unpack", "bulkhead-shim-zygote")


def main(arguments: list[str] | None = None) -> int:
    """Run the suite with each runtime and return the exit status."""
    parser = argparse.ArgumentParser(description="Run critest against a stack of its own.")
    parser.add_argument("--runtime", action="append", choices=sorted(BINARY), help="default: all, one after the other")
    parser.add_argument("--focus", action="append", default=[], metavar="REGEX", help="only specs whose text matches")
    parser.add_argument("--websocket", action="store_true", help="streams over WebSocket instead of SPDY")
    parser.add_argument("--kill", choices=KILLABLE, help="kill -9 this service before each spec")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep critest's words and the stack's log there")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("the suite starts real containers: run it as root")
    # What is fetched is fetched before the network is left.
    images.fetch()
    runtimes = options.runtime or list(BINARY)
    build("cri-tools")
    build("runc")
    _own_namespaces()
    # A run that is told to end takes its stack, its registry and its pods with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    good = True
    with tempfile.TemporaryDirectory(prefix="bhconf") as scratch, registry(Path(scratch) / "registry") as address:
        digests = images.push_all(address)
        keep = options.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        for runtime in runtimes:
            plan = Plan(runtime, options.focus, options.websocket, options.kill or "")
            good &= run(plan, address, digests[f"{images.DIGEST_REPOSITORY}:latest"], keep)
    return 0 if good else 1


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    runtime: str
    focus: list[str]
    websocket: bool
    kill: str

    @property
    def title(self) -> str:
        """The run in a few words."""
        return (
            f"critest with {self.runtime}"
            + ", streams over WebSocket" * self.websocket
            + f", {self.kill} killed before each spec" * bool(self.kill)
        )


def run(plan: Plan, address: str, digest: str, keep: Path) -> bool:
    """Run the suite once, print what came of it, and return whether all was as it should be."""
    stack = Stack(address, default=plan.runtime, pause=images.SANDBOX_IMAGE, more=_handler(plan.runtime))
    mark = str(stack.directory)
    before, began = Host.look(mark), time.monotonic()
    log = keep / f"{plan.runtime}.log"
    with _running(stack, address, log):
        flags = WEBSOCKET if plan.websocket else ()
        output = keep / f"{plan.runtime}.out"
        output.unlink(missing_ok=True)
        suite = Suite(f"unix://{stack.address}", stack.directory / "tmp", output, flags)
        kill = partial(_kill, stack, plan.kill)
        entries = suite.each(kill, plan.focus) if plan.kill else suite.run(plan.focus)
        pinned = [] if plan.focus else suite.run_pinned(digest)
    report = Report(BINARY[plan.runtime])
    report.add(entries)
    report.add(pinned, f"[with the digest {digest}] ", strict=True)
    print(f"\n== {plan.title}: {time.monotonic() - began:.0f} s ==\n{report.text()}", flush=True)
    left = _leaks(before, Host.look(mark), mark, log.read_text())
    for kind, items in left.items():
        print(f"LEFT BEHIND {kind}: {', '.join(items)}")
    return report.good and not left


def _handler(runtime: str) -> str:
    """Return the configuration of a runtime that every stack has not already."""
    if runtime in ("runc", "crun"):
        return ""
    table = f"plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'{runtime}'.options"
    return f'[{table}]\nBinaryName = "{BINARY[runtime]}"\n'


def _kill(stack: Stack, service: str) -> None:
    """Kill a service once it is there: right after the last time it may just be starting.

    The frontend waits for the services behind it, so the spec may begin at once. Nobody waits for the frontend: its
    socket refuses connections until it is back, which the kubelet answers by trying again and critest by failing.
    """
    deadline = time.monotonic() + 30
    while True:
        try:
            old = stack.kill(service)
        except (AssertionError, ProcessLookupError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            break
    if service == "cri-frontend":
        stack.wait_restarted(service, old)


def _leaks(before: Host, after: Host, directory: str, log: str) -> dict[str, list[str]]:
    """Return what the stack of `directory` left on the host, by kind; other stacks may come and go meanwhile."""
    left = before.left_by(after)
    left["mounts"] = [path for path in left.get("mounts", []) if path.startswith(directory)]
    groups = [(path, re.search("[0-9a-f]{64}", path)) for path in left.get("cgroups", [])]
    left["cgroups"] = [path for path, ident in groups if ident is not None and ident[0] in log]
    # The bridge and the chains that all pods share belong to the CNI plugins' host side, which no DEL removes.
    left["links"] = [name for name in left.get("links", []) if not name.startswith("bh")]
    left["rules"] = [rule for rule in left.get("rules", []) if "CNI-HOSTPORT-" not in rule or "CNI-DN-" in rule]
    return {kind: items for kind, items in left.items() if items}


@contextmanager
def _running(stack: Stack, address: str, log: Path) -> Iterator[None]:
    """Start a stack whose registries are the local one, and keep its log."""
    stack.write_config()
    for host in MIRRORED:
        folder = stack.directory / "certs.d" / host
        folder.mkdir(exist_ok=True)
        mirror = f'server = "http://{address}"\n[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n'
        (folder / "hosts.toml").write_text(mirror)
    with stack:
        try:
            yield
        finally:
            log.write_text(stack.log)


def _own_namespaces() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWIPC) != 0:
        raise SystemExit(f"no namespaces of our own: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)


if __name__ == "__main__":
    sys.exit(main())
