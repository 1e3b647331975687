"""critest as a program: the whole suite in one go, or spec by spec with something done before each."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.build import build
from conformance.images import DIGEST_REPOSITORY, UPSTREAM_DIGEST

#: Seconds for one whole run; containerd takes 170 on a machine of two cores.
TIMEOUT = 1200

_BENCHMARK = re.compile("benchmark")
PINNED_SPEC = "public image with digest should be pulled and removed"


@dataclass
class Suite:
    """critest against one CRI socket; `scratch` holds its report and what its specs leave in TMPDIR."""

    address: str
    scratch: Path
    output: Path
    #: Ginkgo's; the same seed is the same order.
    seed: int
    program: Path = field(default_factory=lambda: build("cri-tools")["critest"])

    def __post_init__(self) -> None:
        self.scratch.mkdir(exist_ok=True)
        # Containers of other users read below it.
        self.scratch.chmod(0o1777)

    def run(self, focus: Sequence[str] = (), *flags: str) -> list[dict[str, Any]]:
        """Run the specs whose text matches one of the patterns, or all, and return Ginkgo's reports of the specs.

        What critest says goes to the end of `output`. Raises SystemExit when critest writes no report.
        """
        document = self.scratch / "report.json"
        document.unlink(missing_ok=True)
        command = [str(self.program), "-runtime-endpoint", self.address, "-image-endpoint", self.address]
        command += ["-ginkgo.no-color", "-ginkgo.json-report", str(document)]
        command += ["-ginkgo.seed", str(self.seed), *flags]
        command += [part for pattern in focus for part in ("-ginkgo.focus", pattern)]
        with self.output.open("ab") as out:
            suite = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.scratch,
                env=os.environ | {"TMPDIR": str(self.scratch)},
            )
            try:
                _wait(suite)
            finally:
                if suite.poll() is None:
                    suite.kill()
                    suite.wait(10)
        if not document.exists():
            raise SystemExit(f"critest wrote no report:\n{self.output.read_text(errors='replace')[-4000:]}")
        return [entry for suite in json.loads(document.read_text()) for entry in suite["SpecReports"]]

    def each(self, before: Callable[[], None], focus: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Run every spec in a process of its own with `before` called in between, and return all reports."""
        reports = []
        for entry in self.run(focus, "-ginkgo.dry-run"):
            text = spec_text(entry)
            if entry["LeafNodeType"] != "It" or entry["State"] == "skipped" or _BENCHMARK.search(text):
                continue
            before()
            reports += [one for one in self.run([re.escape(text) + "$"]) if spec_text(one) == text]
        return reports

    def run_pinned(self, digest: str) -> list[dict[str, Any]]:
        """Run the spec that pins an upstream digest with the digest that the local registry has instead.

        The digest stands in the program as text of the same length, so a copy with the other text is the same spec.
        """
        pinned, ours = (f"{DIGEST_REPOSITORY}@{name}".encode() for name in (UPSTREAM_DIGEST, digest))
        copy = self.scratch / "critest-digest"
        data = self.program.read_bytes()
        if pinned not in data or len(pinned) != len(ours):
            raise SystemExit(f"critest does not name {UPSTREAM_DIGEST}")
        copy.write_bytes(data.replace(pinned, ours))
        copy.chmod(0o755)
        return Suite(self.address, self.scratch, self.output, self.seed, copy).run([PINNED_SPEC])


def spec_text(entry: dict[str, Any]) -> str:
    """Return a spec's whole text as Ginkgo's filters see it; the node's kind for what is no spec."""
    texts = [*(entry["ContainerHierarchyTexts"] or []), entry["LeafNodeText"]]
    return " ".join(text for text in texts if text) or str(entry["LeafNodeType"])


def _wait(suite: "subprocess.Popen[bytes]") -> None:
    try:
        suite.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        # The suite writes its report when it is interrupted.
        suite.send_signal(signal.SIGINT)
        suite.wait(60)
