"""The same suite with the same images, runtime and order of specs against a stock containerd, held side by side."""

from conformance import images
from conformance.build import BIN, build
from conformance.plan import Place, Plan, fill
from conformance.report import Report
from conformance.suite import Suite
from support.containerd import Containerd

#: Bulkhead may take this many times as long as its peer.
BOUND = 1.1

_HANDLER = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.peer]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.peer.options]
BinaryName = "{binary}"
"""


def compare(ours: Report, plan: Plan, place: Place) -> bool:
    """Run containerd where Bulkhead ran, print both, and return whether Bulkhead is within the bound."""
    theirs = _run(ours, plan, place)
    ratio = ours.seconds / theirs.seconds
    print(f"{'Bulkhead':12}{ours.counts()}; {ours.seconds:.0f} s")
    print(f"{'containerd':12}{theirs.counts()}; {theirs.seconds:.0f} s; Bulkhead takes {ratio:.2f} times as long")
    outcomes = {spec.name: spec for spec in ours.specs}
    for spec in sorted(theirs.specs, key=lambda spec: spec.name):
        here = outcomes.get(spec.name)
        if here is not None and here.outcome != spec.outcome:
            message = (spec.message or here.message).partition("\n")[0]
            print(f"{here.outcome} here, {spec.outcome} there: {spec.name}\n    {message}")
    return ratio <= BOUND


def _run(ours: Report, plan: Plan, place: Place) -> Report:
    """Run the suite against a containerd of its own with the runtime of our own run."""
    binary = build("containerd")["containerd"]
    output = place.keep / f"{plan.runtime}.containerd.out"
    output.unlink(missing_ok=True)
    report = Report(ours.subject, whole=ours.whole)
    daemon = Containerd(
        place.registry,
        str(binary),
        str(BIN / "containerd"),
        default="peer",
        more=_HANDLER.format(binary=ours.subject.runtime),
        pause=images.SANDBOX_IMAGE,
    )
    with daemon:
        images.write_mirrors(daemon.directory / "certs.d", place.registry)
        suite = Suite(f"unix://{daemon.address}", daemon.directory / "tmp", output, plan.seed)
        fill(report, suite, plan, place)
    return report
