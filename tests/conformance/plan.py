"""What one run of the suite does, whoever it runs against."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conformance.report import Report
from conformance.suite import Suite

WEBSOCKET = ("-websocket-exec", "-websocket-attach", "-websocket-portforward")
STREAMING = r"\[k8s\.io\] Streaming "


@dataclass(frozen=True)
class Place:
    """What the runs share: the registry, the digest there of the image that the suite pins, where words are kept."""

    registry: str
    digest: str
    keep: Path


@dataclass(frozen=True)
class Plan:
    """The runtime, which specs, and the trouble that is made before each of them."""

    runtime: str
    focus: list[str]
    kill: str
    remove_images: bool
    #: Ginkgo's, which decides the order of the specs.
    seed: int

    @property
    def title(self) -> str:
        """The run in a few words."""
        return (
            f"critest with {self.runtime}"
            + f", {self.kill} killed before each spec" * bool(self.kill)
            + ", every image removed before each spec" * self.remove_images
            + f" (seed {self.seed})"
        )


def fill(report: Report, suite: Suite, plan: Plan, place: Place, trouble: Callable[[], None] | None = None) -> None:
    """Run the suite into a report: in one go, or spec by spec where there is trouble to make before each.

    Behind the whole suite come the spec whose digest only upstream has, with a digest that is there, and the streaming
    specs over WebSocket.
    """
    began = time.monotonic()
    report.add(suite.each(trouble, plan.focus) if trouble else suite.run(plan.focus))
    report.seconds = time.monotonic() - began
    if not plan.focus:
        report.add(suite.run_pinned(place.digest), f"[with the digest {place.digest}] ", strict=True)
        report.add(suite.run([STREAMING], *WEBSOCKET), "[over WebSocket] ", strict=True)
