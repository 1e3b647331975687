"""What came of a run of critest, held against the committed list of what may fall short here.

`expected.toml` holds, for each group of specs that may be skipped or fail, the probe that explains it: the group counts
only while that probe says why on this host.
"""

import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.probes import PROBES, Subject
from conformance.suite import spec_text

_EXPECTED = Path(__file__).with_name("expected.toml")
#: Ginkgo's words for a spec that did not succeed.
_FAILED = {"failed", "panicked", "timedout", "interrupted", "aborted"}


@dataclass(frozen=True)
class Group:
    """Specs that may fall short for one reason."""

    outcome: str
    specs: re.Pattern[str]
    probe: str

    def holds(self, spec: "Spec") -> bool:
        """Whether the group speaks of what became of a spec."""
        return self.outcome == spec.outcome and bool(self.specs.search(spec.name))


@dataclass(frozen=True)
class Spec:
    """One spec's fate."""

    name: str
    outcome: str
    message: str
    seconds: float


@dataclass
class Report:
    """The specs of one run against `subject`, and `seconds`, how long critest took for the whole suite."""

    subject: Subject
    whole: bool = True
    seconds: float = 0.0
    specs: list[Spec] = field(default_factory=list)
    #: Specs that nothing excuses.
    strict: list[Spec] = field(default_factory=list)

    def add(self, entries: list[dict[str, Any]], prefix: str = "", *, strict: bool = False) -> None:
        """Add Ginkgo's reports of specs; nothing excuses a spec that is added as strict."""
        found = [spec for entry in entries if (spec := _spec(entry, prefix))]
        self.specs += found
        if strict:
            self.strict += found

    def judged(self) -> "Verdict":
        """Ask the probes why what fell short may do so on this host."""
        said = {group.probe: PROBES[group.probe](self.subject) for group in expected()}
        verdict = Verdict(self)
        for group in expected():
            why = said[group.probe]
            held = [spec for spec in self.specs if spec not in self.strict and group.holds(spec)] if why else []
            verdict.excuses.update(dict.fromkeys(held, f"probe {group.probe}: {why}"))
            if why and not held and self.whole:
                verdict.needless.append(f"{group.outcome} {group.specs.pattern!r} (probe {group.probe}: {why})")
        return verdict

    def counts(self) -> str:
        """Return how many specs passed, failed and were skipped."""
        counted = Counter(spec.outcome for spec in self.specs)
        return ", ".join(f"{counted[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))


@dataclass
class Verdict:
    """What a report is worth: why specs may fall short, and the groups of the list that no spec needed."""

    report: Report
    excuses: dict[Spec, str] = field(default_factory=dict)
    needless: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every spec passed or may fall short, there were any, and the list holds no more than it needs."""
        return (
            any(spec.outcome == "passed" for spec in self.report.specs)
            and all(spec.outcome == "passed" or spec in self.excuses for spec in self.report.specs)
            and not self.needless
        )

    def text(self) -> str:
        """Return a paragraph for each spec that did not pass, and the counts."""
        short = [spec for spec in self.report.specs if spec.outcome != "passed"]
        lines = []
        for spec in sorted(short, key=lambda spec: (spec in self.excuses, spec.outcome, spec.name)):
            reason = self.excuses.get(spec) or f"NOT ALLOWED: {spec.message}"
            lines.append(f"{spec.outcome.upper()} {spec.name}\n    {reason}")
        lines += [f"NOT NEEDED in {_EXPECTED.name}: {group}" for group in self.needless]
        unexpected = sum(spec not in self.excuses for spec in short)
        lines.append(f"{self.report.counts()} ({unexpected} not allowed); the suite took {self.report.seconds:.0f} s")
        return "\n".join(lines)


def expected() -> list[Group]:
    """Return the committed groups."""
    document = tomllib.loads(_EXPECTED.read_text())
    return [Group(entry["outcome"], re.compile(entry["specs"]), entry["probe"]) for entry in document["group"]]


def _spec(entry: dict[str, Any], prefix: str) -> Spec | None:
    """Return one entry of Ginkgo's report; None for a benchmark and for what is no spec and went well."""
    name, state = spec_text(entry), entry["State"]
    message = (entry.get("Failure") or {}).get("Message", "").strip()
    if "benchmark" in name or (entry["LeafNodeType"] != "It" and state == "passed"):
        return None
    if state == "skipped" and not message:
        # Out of the focus.
        return None
    outcome = "failed" if state in _FAILED else state
    return Spec(prefix + name, outcome, message, entry["RunTime"] / 1e9)
