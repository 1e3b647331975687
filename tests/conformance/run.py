"""Run the Kubernetes project's conformance suite, critest, against a Bulkhead stack of its own.

Usage: python -m conformance.run [--runtime runc|crun]... [--focus REGEX]... [--websocket] [--keep DIRECTORY]

Needs root. Everything is in a network and an IPC namespace of its own: the suite's fixed host ports cannot meet
somebody else's, and the shared memory segments that it leaves go with the namespace. Exits 1 on a failed spec and on a
skipped one that `expected.toml` does not allow.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance import images
from conformance.build import build
from conformance.report import Report
from support.leaks import Host
from support.registry import registry
from support.stack import Stack

CLONE_NEWIPC, CLONE_NEWNET = 0x08000000, 0x40000000
MIRRORED = ("registry.k8s.io", "k8s.gcr.io", "gcr.io")
BINARY = {"runc": "/usr/sbin/runc", "crun": "/usr/bin/crun"}
#: Seconds for one whole run; containerd takes 170 on a machine of two cores.
TIMEOUT = 1200


def main(arguments: list[str] | None = None) -> int:
    """Run the suite with each runtime and return the exit status."""
    parser = argparse.ArgumentParser(description="Run critest against a stack of its own.")
    parser.add_argument("--runtime", action="append", choices=sorted(BINARY), help="default: both, one after the other")
    parser.add_argument("--focus", action="append", default=[], metavar="REGEX", help="only specs whose text matches")
    parser.add_argument("--websocket", action="store_true", help="streams over WebSocket instead of SPDY")
    parser.add_argument(
        "--keep", type=Path, metavar="DIRECTORY", help="keep critest's output and the stack's log there"
    )
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("the suite starts real containers: run it as root")
    # What is fetched is fetched before the network is left.
    images.fetch()
    build("cri-tools")
    _own_namespaces()
    good = True
    with tempfile.TemporaryDirectory(prefix="bhconf") as scratch, registry(Path(scratch) / "registry") as address:
        images.push_all(address)
        for runtime in options.runtime or ["runc", "crun"]:
            keep = options.keep or Path(scratch)
            good &= run(runtime, address, options.focus, options.websocket, keep)
    return 0 if good else 1


def run(runtime: str, address: str, focus: list[str], websocket: bool, keep: Path) -> bool:
    """Run the suite once, print what came of it, and return whether all was as it should be."""
    keep.mkdir(parents=True, exist_ok=True)
    stack = Stack(address, default=runtime, pause=images.SANDBOX_IMAGE)
    mark = str(stack.directory)
    before, began = Host.look(mark), time.monotonic()
    stack_log = keep / f"{runtime}.log"
    with _running(stack, address, stack_log):
        document = _critest(stack, focus, websocket, keep / f"{runtime}.out")
    seconds = time.monotonic() - began
    report = Report.load(document, runtime=BINARY[runtime], whole=not focus)
    print(f"\n== critest with {runtime}{', WebSocket' if websocket else ''}: {seconds:.0f} s ==\n{report.text()}")
    left = _leaks(before, Host.look(mark), mark, stack_log.read_text())
    for kind, items in left.items():
        print(f"LEFT BEHIND {kind}: {', '.join(items)}")
    return report.good and not left


def _leaks(before: Host, after: Host, directory: str, log: str) -> dict[str, list[str]]:
    """Return what the stack of `directory` left on the host, by kind; other stacks may come and go meanwhile."""
    left = before.left_by(after)
    left["mounts"] = [path for path in left.get("mounts", []) if path.startswith(directory)]
    left["cgroups"] = [path for path in left.get("cgroups", []) if path.rpartition("/")[2] in log]
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


def _critest(stack: Stack, focus: list[str], websocket: bool, output: Path) -> Path:
    """Run the suite against a stack and return its report's path; its own words go to `output`."""
    document = output.with_suffix(".json")
    document.unlink(missing_ok=True)
    address = f"unix://{stack.address}"
    command = [str(build("cri-tools")["critest"]), "-runtime-endpoint", address, "-image-endpoint", address]
    command += ["-ginkgo.no-color", "-ginkgo.json-report", str(document)]
    command += [part for pattern in focus for part in ("-ginkgo.focus", pattern)]
    if websocket:
        command += ["-websocket-exec", "-websocket-attach", "-websocket-portforward"]
    scratch = stack.directory / "tmp"
    scratch.mkdir()
    # Containers of other users read below it.
    scratch.chmod(0o1777)
    with output.open("wb") as out:
        suite = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=scratch,
            env=os.environ | {"TMPDIR": str(scratch)},
        )
        try:
            suite.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            # The suite writes its report when it is interrupted.
            suite.send_signal(signal.SIGINT)
            suite.wait(60)
    if not document.exists():
        raise SystemExit(f"critest wrote no report:\n{output.read_text(errors='replace')[-4000:]}")
    return document


def _own_namespaces() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWIPC) != 0:
        raise SystemExit(f"no namespaces of our own: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)


if __name__ == "__main__":
    sys.exit(main())
